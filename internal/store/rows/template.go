package rows

import (
	"errors"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const templateColumns = `id, name, kind, status,
	image_reference, image_digest, image_platform, artifact_id, kernel_id,
	egress_ca_baked, egress_ca_fingerprint, egress_ca_targets,
	vcpus, memory_mib, disk_mib, process, readiness,
	parent_id, origin_sandbox, origin_node, ephemeral, labels,
	memory_bytes, disk_bytes, last_error, job_id, created_at, updated_at`

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
)

func templateFields(t *spore.Template) []any {
	return []any{
		&t.ID, &t.Name, &t.Kind, &t.Status,
		&t.Image.Reference, &t.Image.Digest, &t.Image.Platform, &t.ArtifactID, &t.KernelID,
		asFlag(&t.EgressCA.Baked), &t.EgressCA.Fingerprint, &t.EgressCA.TargetsWritten,
		&t.Resources.VCPUs, &t.Resources.MemoryMiB, &t.Resources.DiskMiB,
		asJSON((*processDocument)(&t.Process)), asJSON((*readinessDocument)(&t.Readiness)),
		&t.ParentID, &t.OriginSandbox, &t.OriginNode, asFlag(&t.Ephemeral), asMap(&t.Labels),
		&t.MemoryBytes, &t.DiskBytes, asText(&t.LastError), &t.JobID, asTime(&t.CreatedAt), asTime(&t.UpdatedAt),
	}
}

// templateLive is spelled as the partial indexes spell it, or they would not be used.
const templateLive = "status NOT IN ('DELETING', 'DELETED')"

var templateStates = transition[spore.TemplateStatus]{
	table: "templates", key: "id", column: "status", noun: "template", machine: spore.TemplateTransitions,
}

func (tx *Tx) InsertTemplate(t *spore.Template) error {
	affected, err := tx.exec(insertion("templates", templateColumns), templateFields(t)...)
	if err != nil || affected > 0 {
		return err
	}
	if err := tx.nameTaken(t); err != nil {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "the id %s is taken", t.ID)
}

// nameTaken is an error when another live row holds the name of t.
func (tx *Tx) nameTaken(t *spore.Template) error {
	if t.Name == "" {
		return nil
	}
	var holder string
	found, err := tx.scalar(&holder, "SELECT id FROM templates WHERE name = ? AND name <> '' AND id <> ? AND "+templateLive, t.Name, t.ID)
	if err != nil || !found {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "the name %s is taken by %s", t.Name, holder).
		WithHint("choose another name, or delete %s first", holder)
}

func (tx *Tx) Template(id string) (*spore.Template, error) {
	t, err := selectOne(tx, templateFields, "SELECT "+templateColumns+" FROM templates WHERE id = ?", id)
	if err == nil && t == nil {
		return nil, unknown("template", id)
	}
	return t, err
}

func (tx *Tx) FindTemplate(ref string) (*spore.Template, error) {
	// A name cannot look like an id, so the form of ref says which of the two it is.
	condition := "name = ? AND name <> ''"
	if strings.HasPrefix(ref, spore.TemplatePrefix) || strings.HasPrefix(ref, spore.SnapshotPrefix) {
		condition = "id = ?"
	}
	t, err := selectOne(tx, templateFields, "SELECT "+templateColumns+" FROM templates WHERE "+condition+" AND "+templateLive, ref)
	if err == nil && t == nil {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no template or snapshot %q", ref)
	}
	return t, err
}

func (tx *Tx) UpdateTemplate(t *spore.Template) error {
	err := templateStates.apply(tx, t.ID, t.Status, assignments(templateColumns), templateFields(t))
	if errors.Is(err, ErrUnique) {
		if taken := tx.nameTaken(t); taken != nil {
			return taken
		}
	}
	return err
}

func (tx *Tx) Templates(f store.TemplateFilter) ([]*spore.Template, store.Page, error) {
	l := &listing{table: "templates", columns: templateColumns}
	if !f.Deleted {
		l.and(templateLive)
	}
	switch { // spelled out rather than as parameters, for the partial index
	case f.EphemeralOnly:
		l.and("ephemeral = 1")
	case !f.Ephemeral:
		l.and("ephemeral = 0")
	}
	l.andText("kind", string(f.Kind))
	l.andText("status", string(f.Status))
	l.andText("name", f.Name)
	l.andText("origin_sandbox", f.OriginSandbox)
	l.andText("parent_id", f.ParentID)
	l.andLabels(tx.dialect, f.Labels)
	return selectPage(tx, l, f.Paging, templateFields, func(t *spore.Template) (time.Time, string) { return t.CreatedAt, t.ID })
}
