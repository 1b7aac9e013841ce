package center

import (
	"context"
	"errors"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// lineageLimit is how many ancestors, and how many descendants, are told when no limit is given, and at most.
const lineageLimit = 1000

// anyTemplate is FindTemplate that also finds, by id, what was deleted.
func anyTemplate(tx store.Tx, ref string) (*spore.Template, error) {
	t, err := tx.FindTemplate(ref)
	if !isNotFound(err) {
		return t, err
	}
	if deleted, e := tx.Template(ref); !isNotFound(e) {
		return deleted, e
	}
	return nil, err
}

// Lineage tells what a template came of, nearest first, and what came of it, each after its parent, deleted ones too. The limit
// holds for either of the two.
func (c *Center) Lineage(ctx context.Context, ref string, q LineageQuery) (*Lineage, error) {
	if q.Limit <= 0 || q.Limit > lineageLimit {
		q.Limit = lineageLimit
	}
	if !q.Ancestors && !q.Descendants {
		q.Ancestors, q.Descendants = true, true
	}
	var out *Lineage
	err := c.store.View(ctx, func(tx store.Tx) error {
		t, err := anyTemplate(tx, ref)
		if err != nil {
			return err
		}
		out = &Lineage{Ancestors: []spore.LineageEntry{}, Descendants: []spore.LineageEntry{}}
		if out.Self, err = lineageEntry(tx, t); err != nil {
			return err
		}
		var up, down []*spore.Template
		if q.Ancestors {
			if up, err = ancestors(tx, t, q.Limit+1); err != nil {
				return err
			}
		}
		if q.Descendants {
			if down, err = descendants(tx, t, q.Limit+1); err != nil {
				return err
			}
		}
		out.Omitted = len(up) > q.Limit || len(down) > q.Limit
		if out.Ancestors, err = lineageEntries(tx, up[:min(len(up), q.Limit)]); err != nil {
			return err
		}
		out.Descendants, err = lineageEntries(tx, down[:min(len(down), q.Limit)])
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ancestors follows parents, at most limit of them. It ends at one whose parent is not known, or that was met before.
func ancestors(tx store.Tx, t *spore.Template, limit int) (list []*spore.Template, err error) {
	met := map[string]bool{t.ID: true}
	for t.ParentID != "" && !met[t.ParentID] && len(list) < limit {
		if t, err = tx.Template(t.ParentID); err != nil {
			return list, ignoreNotFound(err)
		}
		met[t.ID] = true
		list = append(list, t)
	}
	return list, nil
}

// descendants lists what came of t, at most limit: its children, newest first, then theirs.
func descendants(tx store.Tx, t *spore.Template, limit int) (list []*spore.Template, err error) {
	met := map[string]bool{t.ID: true}
	parents := []*spore.Template{t}
	for len(parents) > 0 && len(list) < limit {
		f := store.TemplateFilter{ParentID: parents[0].ID, Deleted: true, Ephemeral: true}
		parents = parents[1:]
		for len(list) < limit {
			f.Limit = min(limit-len(list), 1000)
			children, page, err := tx.Templates(f)
			if err != nil {
				return nil, err
			}
			for _, child := range children {
				if !met[child.ID] {
					met[child.ID] = true
					list, parents = append(list, child), append(parents, child)
				}
			}
			if page.Next == "" {
				break
			}
			f.After = page.Next
		}
	}
	return list, nil
}

func lineageEntries(tx store.Tx, list []*spore.Template) ([]spore.LineageEntry, error) {
	entries := make([]spore.LineageEntry, len(list))
	for i, t := range list {
		var err error
		if entries[i], err = lineageEntry(tx, t); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func lineageEntry(tx store.Tx, t *spore.Template) (spore.LineageEntry, error) {
	e := spore.LineageEntry{
		ID: t.ID, Name: t.Name, Kind: t.Kind, Status: t.Status, ParentID: t.ParentID, OriginSandbox: t.OriginSandbox,
		Author: t.Author, Reason: t.Reason, Labels: t.Labels, CreatedAt: t.CreatedAt,
	}
	if t.Status == spore.TemplateDeleted || t.Status == spore.TemplateDeleting {
		return e, nil // its aliases are gone
	}
	aliases, err := aliasesOf(tx, t.ID)
	for _, a := range aliases {
		e.Aliases = append(e.Aliases, a.Label())
	}
	return e, err
}

// aliasesOf lists the names that lead to a template, the first hundred of them.
func aliasesOf(tx store.Tx, templateID string) ([]*spore.Alias, error) {
	list, _, err := tx.Aliases(store.AliasFilter{Paging: store.Paging{Limit: 100}, TemplateID: templateID})
	return list, err
}

// Diff says what differs between two templates or snapshots. A node that has both answers it.
func (c *Center) Diff(ctx context.Context, from, to string, limit int) (*spore.Diff, error) {
	var a, b *spore.Template
	var at []string
	err := c.store.View(ctx, func(tx store.Tx) (err error) {
		if a, err = startable(tx, from); err != nil {
			return err
		}
		if b, err = startable(tx, to); err != nil {
			return err
		}
		at, err = c.together(tx, a.ID, b.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, id := range at {
		n, err := c.on(id)
		if err == nil {
			var d *spore.Diff
			if d, err = n.Diff(ctx, a.ID, b.ID, limit); err == nil {
				d.From, d.To = a.ID, b.ID
				return d, nil
			}
		}
		switch spore.CodeOf(err) {
		case spore.CodeUnreachable, spore.CodeNotFound, spore.CodeDamaged: // another node may know better
			errs = append(errs, err)
		default:
			return nil, err
		}
	}
	return nil, spore.Errorf(spore.CodeUnreachable, "no node that can be asked has both %s and %s", a.Label(), b.Label()).
		WithCause(errors.Join(errs...)).Because(spore.ReasonNoReadyReplica).
		WithHint("see where they are: spore template replicas %s; let a node have both: spore template redo %s --node ID", b.ID, b.ID)
}

func startable(tx store.Tx, ref string) (*spore.Template, error) {
	t, err := tx.FindTemplate(ref)
	if err != nil {
		return nil, err
	}
	return t, t.Startable()
}

// together lists the nodes that have both templates, those that answer first.
func (c *Center) together(tx store.Tx, a, b string) ([]string, error) {
	first, err := readyOn(tx, a)
	if err != nil {
		return nil, err
	}
	second, err := readyOn(tx, b)
	if err != nil {
		return nil, err
	}
	both := slices.DeleteFunc(first, func(id string) bool { return !slices.Contains(second, id) })
	silent := func(id string) int {
		if n := c.fleet.facts(id); n == nil || n.State != spore.NodeReady {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(both, func(x, y string) int { return silent(x) - silent(y) })
	return both, nil
}

func readyOn(tx store.Tx, templateID string) ([]string, error) {
	replicas, err := tx.Replicas(templateID)
	var ids []string
	for _, r := range replicas {
		if r.Status == spore.ReplicaReady {
			ids = append(ids, r.NodeID)
		}
	}
	return ids, err
}
