package center

import (
	"fmt"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// summarise says what follows for a template from its replicas: READY when there are as many as are wanted, and one on each
// node that its policy names, and none that a pinned one has yet to get; PARTIALLY_READY when there are fewer; FAILED when there
// is none, with why.
func summarise(t *spore.Template, replicas []*spore.Replica, want int) (status spore.TemplateStatus, lastError string) {
	ready, lacking, failure := 0, 0, ""
	missing := slices.Clone(t.Replicas.Nodes)
	for _, r := range replicas {
		if r.Status == spore.ReplicaReady {
			ready++
			missing = slices.DeleteFunc(missing, func(id string) bool { return id == r.NodeID })
			continue
		}
		if t.Replicas.Pinned && r.Phase != spore.ReplicaCleaning {
			lacking++
		}
		if failure == "" && r.ErrorMessage != "" {
			failure = r.NodeID + ": " + r.ErrorMessage
		}
	}
	switch {
	case ready == 0 && failure != "":
		return spore.TemplateFailed, failure
	case ready == 0 && t.Status == spore.TemplateFailed && t.LastError != "":
		return spore.TemplateFailed, t.LastError // it never came to have one
	case ready == 0:
		return spore.TemplateFailed, "no node has it any more"
	case ready >= want && len(missing) == 0 && lacking == 0:
		return spore.TemplateReady, ""
	case failure != "":
		return spore.TemplatePartiallyReady, failure
	}
	return spore.TemplatePartiallyReady, fmt.Sprintf("%d of %d replicas are ready", ready, max(want, ready+len(missing), ready+lacking))
}

// resummarise writes what follows for a template from its replicas as they are in tx. One that is being made or deleted has a
// job that decides, and is left alone.
func (c *Center) resummarise(tx store.Tx, templateID string) error {
	t, err := tx.Template(templateID)
	if err != nil {
		return err
	}
	switch t.Status {
	case spore.TemplateReady, spore.TemplatePartiallyReady, spore.TemplateFailed:
	default:
		return nil
	}
	replicas, err := tx.Replicas(templateID)
	if err != nil {
		return err
	}
	status, lastError := summarise(t, replicas, wanted(t.Replicas))
	if status == t.Status && lastError == t.LastError {
		return nil
	}
	t.Status, t.LastError, t.UpdatedAt = status, lastError, c.opt.Now()
	return tx.UpdateTemplate(t)
}
