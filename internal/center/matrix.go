package center

import (
	"context"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// CompatMatrix puts templates beside nodes: one row for each template, newest first, with a cell for each node that has it
// or should. The summary counts over everything, so its cost grows with the number of templates and replicas.
func (c *Center) CompatMatrix(ctx context.Context, q CompatQuery) (*spore.CompatMatrix, error) {
	var m *spore.CompatMatrix
	err := c.store.View(ctx, func(tx store.Tx) error {
		m = &spore.CompatMatrix{Templates: []spore.CompatRow{}}
		nodes, err := nodesByID(tx)
		if err != nil {
			return err
		}
		var list []*spore.Template
		if q.Template != "" {
			t, err := tx.FindTemplate(q.Template)
			if err != nil {
				return err
			}
			list = []*spore.Template{t}
		} else {
			var page store.Page
			f := store.TemplateFilter{Paging: store.Paging{Limit: q.Limit, After: q.PageToken}, Ephemeral: true}
			if list, page, err = tx.Templates(f); err != nil {
				return err
			}
			m.Next = page.Next
		}
		var sum compatSum
		for _, t := range list {
			replicas, err := tx.Replicas(t.ID)
			if err != nil {
				return err
			}
			row := compatRow(t, replicas, nodes)
			m.Templates = append(m.Templates, row)
			sum.addRow(row)
		}
		if q.Template == "" {
			if sum, err = sumCompat(tx, nodes); err != nil {
				return err
			}
		}
		m.Summary = sum.summary()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func nodesByID(tx store.Tx) (map[string]*spore.Node, error) {
	all, err := tx.Nodes(false)
	nodes := make(map[string]*spore.Node, len(all))
	for _, n := range all {
		nodes[n.ID] = n
	}
	return nodes, err
}

// compatCell judges a replica. A row that is not READY is a place where there should be one, unless it is being removed.
func compatCell(r *spore.Replica, nodes map[string]*spore.Node) (cell spore.NodeCompat, ok bool) {
	n := nodes[r.NodeID]
	if n == nil || r.Phase == spore.ReplicaCleaning {
		return cell, false
	}
	cell = spore.NodeCompat{
		NodeID: n.ID, NodeAddress: n.Address, Status: spore.CompatMissing, Policy: r.CompatPolicy,
		Bound: r.Bound, Current: n.Components, CheckedAt: r.CompatCheckedAt,
	}
	if usable(r) {
		if cell.Status = verdict(r, n); cell.Status == spore.CompatStale {
			if cell.Gap = r.CompatPolicy.Gap(r.Bound, n.Components, n.Installed); cell.Gap.Why == "" {
				cell.Gap.Why = whyStale // and the node does not say now what it has
			}
		}
	}
	return cell, true
}

// lacking lists the nodes on which a template should be, by its policy, and has not even the row of a replica.
func lacking(t *spore.Template, replicas []*spore.Replica, nodes map[string]*spore.Node) []string {
	if !spreads(t) || !mayReplicate(t) {
		return nil
	}
	add, _ := plan(t, replicas, nodes)
	return add
}

// spreads says whether a template is meant for more than the node that made it.
func spreads(t *spore.Template) bool {
	return t.Replicas.Pinned || wanted(t.Replicas) > 1 || len(t.Replicas.Nodes) > 0
}

// compatRow is a template's row. With no cell at all it is UNKNOWN: it is nowhere, and not meant to be.
func compatRow(t *spore.Template, replicas []*spore.Replica, nodes map[string]*spore.Node) spore.CompatRow {
	row := spore.CompatRow{TemplateID: t.ID, Name: t.Name, Kind: t.Kind, Engine: t.Engine, Nodes: []spore.NodeCompat{}}
	for _, r := range replicas {
		if cell, ok := compatCell(r, nodes); ok {
			row.Nodes = append(row.Nodes, cell)
		}
	}
	for _, id := range lacking(t, replicas, nodes) {
		n := nodes[id]
		row.Nodes = append(row.Nodes, spore.NodeCompat{
			NodeID: id, NodeAddress: n.Address, Status: spore.CompatMissing, Policy: t.Policy, Current: n.Components,
		})
	}
	slices.SortFunc(row.Nodes, func(a, b spore.NodeCompat) int { return strings.Compare(a.NodeID, b.NodeID) })
	row.Overall = overall(row.Nodes)
	return row
}

// overall is the worst of a row.
func overall(cells []spore.NodeCompat) spore.CompatStatus {
	if len(cells) == 0 {
		return spore.CompatUnknown
	}
	for _, worst := range []spore.CompatStatus{spore.CompatStale, spore.CompatMissing, spore.CompatUnknown} {
		if slices.ContainsFunc(cells, func(n spore.NodeCompat) bool { return n.Status == worst }) {
			return worst
		}
	}
	return spore.CompatOK
}

// compatSum adds up a summary. The replicas of one template must come one after the other.
type compatSum struct {
	spore.CompatSummary
	lastStale string // template
	nodes     map[string]bool
}

func (s *compatSum) add(templateID string, cell spore.NodeCompat) {
	switch cell.Status {
	case spore.CompatStale:
		s.StaleReplicas++
		if s.lastStale != templateID {
			s.StaleTemplates++
			s.lastStale = templateID
		}
		if s.nodes == nil {
			s.nodes = map[string]bool{}
		}
		s.nodes[cell.NodeID] = true
	case spore.CompatMissing:
		s.MissingReplicas++
	case spore.CompatUnknown:
		s.UnknownReplicas++
	}
}

func (s *compatSum) addRow(row spore.CompatRow) {
	for _, cell := range row.Nodes {
		s.add(row.TemplateID, cell)
	}
}

func (s *compatSum) summary() spore.CompatSummary {
	s.AffectedNodes = len(s.nodes)
	return s.CompatSummary
}

// sumCompat counts over all templates. It goes through all replicas once, in the order of their templates; only those few
// templates that are meant for many nodes are looked at one by one.
func sumCompat(tx store.Tx, nodes map[string]*spore.Node) (sum compatSum, err error) {
	replicas := store.ReplicaFilter{Paging: store.Paging{Limit: 1000}}
	for {
		list, page, err := tx.ReplicaPage(replicas)
		if err != nil {
			return sum, err
		}
		for _, r := range list {
			if cell, ok := compatCell(r, nodes); ok {
				sum.add(r.TemplateID, cell)
			}
		}
		if page.Next == "" {
			break
		}
		replicas.After = page.Next
	}
	templates := store.TemplateFilter{Paging: store.Paging{Limit: 1000}}
	for {
		list, page, err := tx.Templates(templates)
		if err != nil {
			return sum, err
		}
		for _, t := range list {
			if !spreads(t) {
				continue
			}
			replicas, err := tx.Replicas(t.ID)
			if err != nil {
				return sum, err
			}
			sum.MissingReplicas += len(lacking(t, replicas, nodes))
		}
		if page.Next == "" {
			return sum, nil
		}
		templates.After = page.Next
	}
}
