package rows

import "github.com/sporevm/spore"

var nodeStates = transition[spore.NodeState]{
	table: "nodes", key: "id", column: "state", noun: "node", machine: spore.NodeTransitions,
	fixed: "id, created_at",
	changing: `address, state, state_reason, draining, labels, engine, components, installed, networks,
		vcpus, memory_mib, memory_promised_mib, sandboxes, storage, updated_at, seen_at`,
}.prepared()

var nodeColumns = nodeStates.columns()

// The documents that nodes keep as JSON; their keys must not change once they are written.
type (
	componentsDocument struct {
		GuestImage  string `json:"guestImage,omitempty"`
		Agent       string `json:"agent,omitempty"`
		Kernel      string `json:"kernel,omitempty"`
		Engine      string `json:"engine,omitempty"`
		StateFormat string `json:"stateFormat,omitempty"`
		CPU         string `json:"cpu,omitempty"`

		EngineVersion string `json:"engineVersion,omitempty"`
	}
	networkDocument struct {
		Mode   spore.NetworkMode `json:"mode"`
		WhyNot string            `json:"whyNot,omitempty"`
	}
	storageDocument struct {
		TotalBytes    int64             `json:"totalBytes,omitempty"`
		UsedBytes     int64             `json:"usedBytes,omitempty"`
		ReservedBytes int64             `json:"reservedBytes,omitempty"`
		Mode          spore.StorageMode `json:"mode,omitempty"`
		Limits        limitsDocument    `json:"limits"`
		LastError     string            `json:"lastError,omitempty"`
		MeasuredAt    int64             `json:"measuredAtNanos,omitempty"`
	}
	limitsDocument struct {
		Warn       int `json:"warn,omitempty"`
		Reject     int `json:"reject,omitempty"`
		DeleteOnly int `json:"deleteOnly,omitempty"`
	}
)

func nodeFields(n *spore.Node) []any {
	return []any{
		&n.ID, asTime(&n.CreatedAt),
		asText(&n.Address), &n.State, asText(&n.StateReason), asFlag(&n.Draining), asMap(&n.Labels), &n.Engine,
		asDocument(&n.Components, storeComponents, loadComponents), asDocument(&n.Installed, storeInstalled, loadInstalled),
		asDocument(&n.Networks, storeNetworks, loadNetworks),
		&n.VCPUs, &n.MemoryMiB, &n.MemoryPromisedMiB, &n.Sandboxes, asDocument(&n.Storage, storeStorage, loadStorage),
		asTime(&n.UpdatedAt), asTime(&n.SeenAt),
	}
}

func storeComponents(c spore.Components) componentsDocument { return componentsDocument(c) }
func loadComponents(d componentsDocument) spore.Components  { return spore.Components(d) }

func storeInstalled(list []spore.Components) []componentsDocument {
	documents := make([]componentsDocument, len(list))
	for i, c := range list {
		documents[i] = componentsDocument(c)
	}
	return documents
}

func loadInstalled(documents []componentsDocument) []spore.Components {
	var list []spore.Components
	for _, d := range documents {
		list = append(list, spore.Components(d))
	}
	return list
}

func storeNetworks(list []spore.NodeNetwork) []networkDocument {
	documents := make([]networkDocument, len(list))
	for i, has := range list {
		documents[i] = networkDocument(has)
	}
	return documents
}

func loadNetworks(documents []networkDocument) []spore.NodeNetwork {
	var list []spore.NodeNetwork
	for _, d := range documents {
		list = append(list, spore.NodeNetwork(d))
	}
	return list
}

func storeStorage(s spore.NodeStorage) storageDocument {
	return storageDocument{
		s.TotalBytes, s.UsedBytes, s.ReservedBytes, s.Mode, limitsDocument(s.Limits), s.LastError, nanos(s.MeasuredAt),
	}
}

func loadStorage(d storageDocument) spore.NodeStorage {
	return spore.NodeStorage{
		TotalBytes: d.TotalBytes, UsedBytes: d.UsedBytes, ReservedBytes: d.ReservedBytes, Mode: d.Mode, Limits: spore.StorageLimits(d.Limits),
		LastError: d.LastError, MeasuredAt: timeOf(d.MeasuredAt),
	}
}

func (tx *Tx) PutNode(n *spore.Node) error {
	return nodeStates.put(tx, n.State, nodeFields(n), n.ID)
}

func (tx *Tx) Node(id string) (*spore.Node, error) {
	n, err := selectOne(tx, nodeFields, "SELECT "+nodeColumns+" FROM nodes WHERE id = ?", id)
	if err == nil && n == nil {
		return nil, unknown("node", id)
	}
	return n, err
}

func (tx *Tx) Nodes(forgotten bool) ([]*spore.Node, error) {
	query := "SELECT " + nodeColumns + " FROM nodes"
	if !forgotten {
		query += " WHERE state <> 'FORGOTTEN'"
	}
	return selectRows(tx, nodeFields, query+" ORDER BY id")
}
