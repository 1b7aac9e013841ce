package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) compatCommand() *cobra.Command {
	return newGroup("compat", "See which templates fit which nodes, and judge them anew", `  spore compat matrix
  spore compat scan --node node-2`,
		a.compatMatrix(), a.compatScan(), a.compatAdopt())
}

// cell is one template on one node, a line of the matrix.
type cell struct {
	row  api.CompatRow
	node api.NodeCompat
}

// versus is a bound and a present version, as one when they agree.
func versus(bound, current string) string {
	if bound == current {
		return bound
	}
	return fmt.Sprintf("%s, now %s", orUnknown(bound), orUnknown(current))
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func (a *app) cellView() view[cell] {
	part := func(of func(api.Components) string) func(cell) string {
		return func(c cell) string { return versus(of(c.node.Bound), of(c.node.Current)) }
	}
	return view[cell]{
		id: func(c cell) string { return c.row.TemplateID },
		columns: []column[cell]{
			{"template", false, func(c cell) string { return c.row.TemplateID }},
			{"name", false, func(c cell) string { return c.row.Name }},
			{"kind", true, func(c cell) string { return string(c.row.Kind) }},
			{"overall", false, func(c cell) string { return string(c.row.Overall) }},
			{"node", false, func(c cell) string { return c.node.NodeID }},
			{"address", true, func(c cell) string { return c.node.NodeAddress }},
			{"status", false, func(c cell) string { return string(c.node.Status) }},
			{"policy", false, func(c cell) string { return string(c.node.Policy) }},
			{"guest image", true, part(func(c api.Components) string { return c.GuestImage })},
			{"agent", true, part(func(c api.Components) string { return c.Agent })},
			{"kernel", true, part(func(c api.Components) string { return c.Kernel })},
			{"engine", true, part(func(c api.Components) string { return strings.TrimSpace(c.Engine + " " + c.EngineVersion) })},
			{"state format", true, part(func(c api.Components) string { return c.StateFormat })},
			{"cpu", true, func(c cell) string { // a guest that uses none of the processor's features fits any
				if c.node.Bound.CPU == "" {
					return ""
				}
				return versus(c.node.Bound.CPU, c.node.Current.CPU)
			}},
			{"why", false, func(c cell) string { return c.node.Why }},
			{"install", true, func(c cell) string { return c.node.Cure }},
			{"checked", true, func(c cell) string { return a.age(c.node.CheckedAt) }},
		},
	}
}

var compatStatuses = []spore.CompatStatus{spore.CompatOK, spore.CompatStale, spore.CompatUnknown, spore.CompatMissing}

func (a *app) compatMatrix() *cobra.Command {
	var template, status string
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Show every template beside every node",
		Long: `Show how each template and snapshot fits the nodes that have it, or should: OK, STALE (frozen with other versions than
the node has now), UNKNOWN (one side is not known) or MISSING (it should be there and is not). Of what is STALE it says why. With -o wide what
it was frozen with stands beside what the node has, and what to install for it.`,
		Example: "  spore compat matrix\n  spore compat matrix --template python -o wide\n  spore compat matrix --status stale,missing",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			only := constants[spore.CompatStatus](status)
			for _, s := range only {
				if !slices.Contains(compatStatuses, s) {
					return usage(cmd, errors.New("--status takes "+strings.Join(lowered(compatStatuses), ", ")))
				}
			}
			m, err := wholeMatrix(cmd.Context(), c, template)
			if err != nil {
				return err
			}
			m.Templates = selected(m.Templates, only)
			if a.output == "json" && !a.quiet {
				return a.json(m)
			}
			return a.printMatrix(m)
		}),
	}
	cmd.Flags().StringVar(&template, "template", "", "only this template or snapshot")
	cmd.Flags().StringVar(&status, "status", "", "only where it is one of these, separated by commas: "+strings.Join(lowered(compatStatuses), ", "))
	cmd.RegisterFlagCompletionFunc("template", a.complete(templates))
	cmd.RegisterFlagCompletionFunc("status", words(lowered(compatStatuses)...))
	return cmd
}

// wholeMatrix reads all pages. The summary is that of the first.
func wholeMatrix(ctx context.Context, c *client.Client, template string) (*api.CompatMatrix, error) {
	m, err := c.CompatPage(ctx, api.GetCompatMatrixParams{Template: template})
	if err != nil || m.NextPageToken == "" {
		return m, err
	}
	for next := m.NextPageToken; next != ""; {
		more, err := c.CompatPage(ctx, api.GetCompatMatrixParams{Template: template, PageToken: next})
		if err != nil {
			return nil, err
		}
		if m.Templates = append(m.Templates, more.Templates...); more.NextPageToken == next {
			return nil, errors.New("the server repeats a page")
		}
		next = more.NextPageToken
	}
	m.NextPageToken = ""
	return m, nil
}

// selected leaves only cells with certain statuses, and rows that have some.
func selected(rows []api.CompatRow, only []spore.CompatStatus) []api.CompatRow {
	if len(only) == 0 {
		return rows
	}
	out := []api.CompatRow{}
	for _, row := range rows {
		var cells []api.NodeCompat
		for _, n := range row.Nodes {
			if slices.Contains(only, n.Status) {
				cells = append(cells, n)
			}
		}
		if row.Nodes = cells; len(cells) > 0 {
			out = append(out, row)
		}
	}
	return out
}

// cellsOn are the lines of a matrix, only those of some nodes when any are named.
func cellsOn(rows []api.CompatRow, nodes []string) (out []cell) {
	for _, row := range rows {
		for _, n := range row.Nodes {
			if len(nodes) == 0 || slices.Contains(nodes, n.NodeID) {
				out = append(out, cell{row, n})
			}
		}
		if len(row.Nodes) == 0 && len(nodes) == 0 {
			out = append(out, cell{row: row})
		}
	}
	return out
}

func (a *app) printMatrix(m *api.CompatMatrix) error {
	cells := cellsOn(m.Templates, nil)
	if a.quiet {
		cells = slices.CompactFunc(cells, func(x, y cell) bool { return x.row.TemplateID == y.row.TemplateID })
	}
	if err := a.cellView().list(a, cells); err != nil || a.quiet {
		return err
	}
	s := m.Summary
	_, err := fmt.Fprintf(a.Stderr, "stale: %d replicas of %d templates on %d nodes; missing: %d; unknown: %d\n",
		s.StaleReplicas, s.StaleTemplates, s.AffectedNodes, s.MissingReplicas, s.UnknownReplicas)
	return err
}

func (a *app) compatScan() *cobra.Command {
	var nodeIDs []string
	cmd := &cobra.Command{
		Use:     "scan",
		Short:   "Judge the replicas on nodes anew",
		Long:    "Judge the replicas on nodes anew. The server does so by itself when it starts and when a node's versions change.",
		Example: "  spore compat scan\n  spore compat scan --node node-2",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			var scan *api.CompatScan
			err := a.waiting(cmd.Context(), "scanning", func(ctx context.Context) (err error) {
				scan, err = c.ScanCompat(ctx, nodeIDs...)
				return err
			})
			if err != nil {
				return err
			}
			v := view[api.CompatScan]{id: func(s api.CompatScan) string { return strings.Join(s.Nodes, "\n") }}
			return v.details(a, *scan, []detail{
				{"nodes", strings.Join(scan.Nodes, ", ")}, {"replicas", fmt.Sprint(scan.Replicas)}, {"changed", fmt.Sprint(scan.Changed)}, {"stale", fmt.Sprint(scan.Stale)},
			})
		}),
	}
	cmd.Flags().StringArrayVar(&nodeIDs, "node", nil, "only this node; may be given several times (default all)")
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	return cmd
}

func (a *app) compatAdopt() *cobra.Command {
	var template string
	var nodeIDs []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Declare that UNKNOWN replicas were frozen with what their nodes have now",
		Long: `Declare that UNKNOWN replicas were frozen with the versions that their nodes have now. Only somebody who knows that it is
so should say it: a later change of versions makes them STALE from then on.`,
		Example: "  spore compat adopt --dry-run\n  spore compat adopt --template python --node node-2",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if dryRun {
				m, err := wholeMatrix(cmd.Context(), c, template)
				if err != nil {
					return err
				}
				m.Templates = selected(m.Templates, []spore.CompatStatus{spore.CompatUnknown})
				fmt.Fprintln(a.Stderr, "would be adopted:")
				return a.cellView().list(a, cellsOn(m.Templates, nodeIDs))
			}
			adopted, err := c.AdoptBaseline(cmd.Context(), template, nodeIDs...)
			if err != nil {
				return err
			}
			if a.output == "json" && !a.quiet {
				return a.json(api.Adoption{Adopted: adopted})
			}
			_, err = fmt.Fprintf(a.Stdout, "%d replicas adopted\n", adopted)
			return err
		}),
	}
	cmd.Flags().StringVar(&template, "template", "", "only this template or snapshot (default all)")
	cmd.Flags().StringArrayVar(&nodeIDs, "node", nil, "only on this node; may be given several times (default all)")
	dryRunFlag(cmd, &dryRun)
	cmd.RegisterFlagCompletionFunc("template", a.complete(templates))
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	return cmd
}
