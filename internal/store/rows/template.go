package rows

import (
	"errors"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var templateStates = transition[spore.TemplateStatus]{
	table: "templates", key: "id", column: "status", noun: "template", machine: spore.TemplateTransitions,
	fixed: "id, name, kind, display_name, artifact_id, parent_id, origin_sandbox, ephemeral, labels, created_at",
	changing: `status, image_reference, image_digest, image_platform, kernel_id, egress_ca_baked, egress_ca_fingerprint, egress_ca_targets,
		vcpus, memory_mib, disk_mib, process, readiness,
		version, engine, storage_backend, retain, policy, replica_policy, rootfs_size_bytes, request, author, reason,
		origin_node, memory_bytes, disk_bytes, last_error, job_id, updated_at, nic`,
}.prepared()

var (
	templateColumns = templateStates.columns()
	insertTemplate  = insertion("templates", templateColumns)
	selectTemplate  = "SELECT " + templateColumns + " FROM templates WHERE id = ?"
	templateLabels  = labelled{"templates", "template_labels"}
)

// The documents that templates keep as JSON; their keys must not change once they are written.
type (
	processDocument struct {
		Entrypoint []string `json:"entrypoint,omitempty"`
		Cmd        []string `json:"cmd,omitempty"`
		Env        []string `json:"env,omitempty"`
		User       string   `json:"user,omitempty"`
		WorkDir    string   `json:"workDir,omitempty"`
		StopSignal string   `json:"stopSignal,omitempty"`
	}
	readinessDocument struct {
		Command  []string      `json:"command,omitempty"`
		TCPPort  int           `json:"tcpPort,omitempty"`
		HTTPPath string        `json:"httpPath,omitempty"`
		HTTPPort int           `json:"httpPort,omitempty"`
		Timeout  time.Duration `json:"timeoutNanos,omitempty"`
	}
	replicasDocument struct {
		Nodes    []string          `json:"nodes,omitempty"`
		Selector map[string]string `json:"selector,omitempty"`
		Min      int               `json:"min,omitempty"`
		Max      int               `json:"max,omitempty"`
		Pinned   bool              `json:"pinned,omitempty"`
	}
)

func templateFields(t *spore.Template) []any {
	return []any{
		&t.ID, &t.Name, &t.Kind, asText(&t.DisplayName), &t.ArtifactID, &t.ParentID, &t.OriginSandbox, asFlag(&t.Ephemeral), asMap(&t.Labels), asTime(&t.CreatedAt),
		&t.Status, &t.Image.Reference, &t.Image.Digest, &t.Image.Platform, &t.KernelID,
		asFlag(&t.EgressCA.Baked), &t.EgressCA.Fingerprint, &t.EgressCA.TargetsWritten,
		&t.Resources.VCPUs, &t.Resources.MemoryMiB, &t.Resources.DiskMiB,
		asJSON((*processDocument)(&t.Process)), asJSON((*readinessDocument)(&t.Readiness)),
		&t.Version, &t.Engine, &t.StorageBackend, asFlag(&t.Retain), &t.Policy, asJSON((*replicasDocument)(&t.Replicas)),
		&t.RootfsSizeBytes, &t.Request, asText(&t.Author), asText(&t.Reason),
		&t.OriginNode, &t.MemoryBytes, &t.DiskBytes, asText(&t.LastError), &t.JobID, asTime(&t.UpdatedAt), asFlag(&t.NIC),
	}
}

// templateLive is spelled as the partial indexes spell it, or they would not be used.
const templateLive = "status NOT IN ('DELETING', 'DELETED')"

func isLive(t *spore.Template) bool {
	return t.Status != spore.TemplateDeleting && t.Status != spore.TemplateDeleted
}

func (tx *Tx) InsertTemplate(t *spore.Template) error {
	if err := tx.pointedElsewhere(t); err != nil {
		return err
	}
	affected, err := tx.exec(insertTemplate, templateFields(t)...)
	if err != nil {
		return err
	}
	if affected == 0 {
		if err := tx.nameTaken(t); err != nil {
			return err
		}
		return spore.Errorf(spore.CodeConflict, "the id %s is taken", t.ID).Because(spore.ReasonDuplicate)
	}
	return templateLabels.put(tx, t.ID, t.CreatedAt, t.Labels, true)
}

const holderOfName = "SELECT id FROM templates WHERE name = ? AND name <> '' AND id <> ? AND " + templateLive

// nameTaken is an error when another live row holds the name of t.
func (tx *Tx) nameTaken(t *spore.Template) error {
	var holder string
	found, err := tx.scalar(&holder, holderOfName, t.Name, t.ID)
	if err != nil || !found {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "the name %s is taken by %s", t.Name, holder).
		WithHint("choose another name, or delete %s first", holder).Because(spore.ReasonDuplicate)
}

// pointedElsewhere is an error when the name of t is an alias.
func (tx *Tx) pointedElsewhere(t *spore.Template) error {
	if t.Name == "" || !isLive(t) {
		return nil
	}
	a, err := selectOne(tx, aliasFields, "SELECT "+aliasColumns+" FROM aliases WHERE name = ? ORDER BY tag LIMIT 1", t.Name)
	if err != nil || a == nil {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "the name %s is an alias: %s points at %s", t.Name, a.Label(), a.TemplateID).
		WithHint("choose another name, or remove the alias first").Because(spore.ReasonDuplicate)
}

func (tx *Tx) Template(id string) (*spore.Template, error) {
	t, err := selectOne(tx, templateFields, selectTemplate, id)
	if err == nil && t == nil {
		return nil, unknown("template", id)
	}
	return t, err
}

var (
	findByID    = selectTemplate + " AND " + templateLive
	findByName  = "SELECT " + templateColumns + " FROM templates WHERE name = ? AND name <> '' AND " + templateLive
	findByAlias = "SELECT " + templateColumns + " FROM templates WHERE id = (SELECT template_id FROM aliases WHERE name = ? AND tag = ?) AND " + templateLive
)

func (tx *Tx) FindTemplate(ref string) (*spore.Template, error) {
	t, err := tx.findTemplate(ref)
	if err != nil || t != nil {
		return t, err
	}
	missing := spore.Errorf(spore.CodeNotFound, "there is no template or snapshot %q", ref).Because(spore.ReasonTemplateNotFound)
	if strings.HasPrefix(ref, spore.SnapshotPrefix) {
		missing = missing.Because(spore.ReasonSnapshotNotFound)
	}
	return nil, missing
}

func (tx *Tx) findTemplate(ref string) (*spore.Template, error) {
	// A name cannot look like an id, so the form of ref says which of the two it is.
	if strings.HasPrefix(ref, spore.TemplatePrefix) || strings.HasPrefix(ref, spore.SnapshotPrefix) {
		return selectOne(tx, templateFields, findByID, ref)
	}
	name, tag, tagged := splitAlias(ref)
	if !tagged {
		if t, err := selectOne(tx, templateFields, findByName, name); err != nil || t != nil {
			return t, err
		}
	}
	return selectOne(tx, templateFields, findByAlias, name, tag)
}

// splitAlias takes "name" or "name:tag" apart.
func splitAlias(ref string) (name, tag string, tagged bool) {
	name, tag, tagged = strings.Cut(ref, ":")
	if !tagged {
		tag = spore.DefaultTag
	}
	return name, tag, tagged
}

func (tx *Tx) UpdateTemplate(t *spore.Template) error {
	fields := templateFields(t)
	written, err := templateStates.writeChanging(tx, t.Status, fields, t.ID)
	if err == nil && !written {
		err = tx.rewriteTemplate(t, fields)
	}
	if err != nil || isLive(t) {
		return err
	}
	return tx.dropAliases(t.ID, t.UpdatedAt)
}

func (tx *Tx) rewriteTemplate(t *spore.Template, fields []any) error {
	if taken := tx.pointedElsewhere(t); taken != nil {
		if err := templateStates.check(tx, t.Status, t.ID); err != nil {
			return err
		}
		return taken
	}
	err := templateStates.writeAll(tx, t.Status, fields, t.ID)
	if errors.Is(err, ErrUnique) {
		if taken := tx.nameTaken(t); taken != nil {
			return taken
		}
	}
	if err != nil {
		return err
	}
	return templateLabels.put(tx, t.ID, t.CreatedAt, t.Labels, false)
}

// listTemplates puts a list together. Of several conditions it goes by the one that leaves the fewest rows, and looks at the
// others for each of those.
func (tx *Tx) listTemplates(f store.TemplateFilter) (*listing, error) {
	l := newest("templates", templateColumns)
	if !f.Deleted {
		l.and(templateLive)
	}
	switch { // spelled out rather than as parameters, for the partial index
	case f.EphemeralOnly:
		l.and("ephemeral = 1")
	case !f.Ephemeral:
		l.and("ephemeral = 0")
	}
	l.andText("id", f.ID)
	names := templateNames(f.Name)
	columns := []struct{ name, value string }{
		{"origin_sandbox", f.OriginSandbox}, {"parent_id", f.ParentID}, {"artifact_id", f.ArtifactID}, {"status", string(f.Status)},
	}
	ways := templateLabels.narrowings(f.Labels)
	for _, c := range columns {
		if c.value != "" {
			ways = append(ways, narrowing{c.name, "templates", condition{c.name + " = ? AND " + c.name + " <> ''", []any{c.value}}})
		}
	}
	if len(names) > 0 {
		ways = append(ways, narrowing{"name", "templates", anyOf(names)})
	}
	way, err := tx.narrowest(ways)
	if err != nil {
		return nil, err
	}
	for _, c := range columns {
		if c.name == way {
			l.andText(c.name, c.value)
		} else {
			l.andHidden(c.name, c.value)
		}
	}
	if way == "" || way == "status" { // there are indexes for the kind with each of these
		l.andText("kind", string(f.Kind))
	} else {
		l.andHidden("kind", string(f.Kind))
	}
	switch {
	case way == "name":
		l.either = names
	case len(names) > 0:
		l.where = append(l.where, anyOf(names))
	}
	if !f.CreatedBefore.IsZero() {
		l.and("created_at < ?", nanos(f.CreatedBefore))
	}
	templateLabels.filter(l, f.Labels, labelOf(way))
	return l, nil
}

// templateNames are the ways in which a template can have a name.
func templateNames(ref string) []condition {
	if ref == "" {
		return nil
	}
	alias := condition{"id IN (SELECT template_id FROM aliases WHERE name = ?)", []any{ref}}
	if name, tag, tagged := splitAlias(ref); tagged {
		alias = condition{"id IN (SELECT template_id FROM aliases WHERE name = ? AND tag = ?)", []any{name, tag}}
	}
	return []condition{
		{"name = ? AND name <> ''", []any{ref}},
		{"display_name = ? AND display_name <> ''", []any{ref}},
		alias,
	}
}

func (tx *Tx) Templates(f store.TemplateFilter) ([]*spore.Template, store.Page, error) {
	l, err := tx.listTemplates(f)
	if err != nil {
		return nil, store.Page{}, err
	}
	return selectPage(tx, l, f.Paging, templateFields, func(t *spore.Template) []any { return []any{nanos(t.CreatedAt), t.ID} })
}

func (tx *Tx) CountTemplates(f store.TemplateFilter, limit int) (int, error) {
	l, err := tx.listTemplates(f)
	if err != nil {
		return 0, err
	}
	return l.count(tx, limit)
}
