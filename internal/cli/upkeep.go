package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) fsckCommand() *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Look for damage in what the server stores",
		Long: `Look for damage in what the server stores, changing nothing. The exit code is 0 when all is well and 1 when
something is not.`,
		Example: "  spore fsck\n  spore fsck --full -o json",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			report, err := a.check(cmd.Context(), c, full)
			if err != nil {
				return err
			}
			if err := a.printCheck(report); err != nil {
				return err
			}
			if len(report.Problems) > 0 {
				return &exitError{code: exitFailure}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&full, "full", false, "read every stored byte")
	return cmd
}

func (a *app) check(ctx context.Context, c *client.Client, full bool) (*api.CheckReport, error) {
	p := a.newProgress()
	defer p.finish()
	return c.Check(ctx, full, p.step)
}

var problemView = view[api.CheckProblem]{
	id: func(p api.CheckProblem) string { return p.Object },
	columns: []column[api.CheckProblem]{
		{"object", false, func(p api.CheckProblem) string { return p.Object }},
		{"kind", false, func(p api.CheckProblem) string { return p.Kind }},
		{"detail", false, func(p api.CheckProblem) string { return p.Detail }},
		{"hint", false, func(p api.CheckProblem) string { return p.Hint }},
	},
}

func (a *app) printCheck(r *api.CheckReport) error {
	switch {
	case a.output == "json" && !a.quiet:
		return a.json(r)
	case len(r.Problems) > 0 || a.quiet:
		return problemView.list(a, r.Problems)
	}
	_, err := fmt.Fprintf(a.Stdout, "no problems: %d objects looked at, %s read\n", r.Objects, size(r.Bytes))
	return err
}

var garbageView = view[api.GarbageItem]{
	id: func(i api.GarbageItem) string { return i.ID },
	columns: []column[api.GarbageItem]{
		{"id", false, func(i api.GarbageItem) string { return i.ID }},
		{"kind", false, func(i api.GarbageItem) string { return i.Kind }},
		{"size", false, func(i api.GarbageItem) string { return size(i.Bytes) }},
		{"reason", false, func(i api.GarbageItem) string { return i.Reason }},
	},
}

func (a *app) gcCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "gc",
		Short:   "Free the bytes that nothing holds any more",
		Example: "  spore gc --dry-run\n  spore gc",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			report, err := c.CollectGarbage(cmd.Context(), dryRun)
			if err != nil {
				return err
			}
			if a.output == "json" && !a.quiet {
				return a.json(report)
			}
			if len(report.Items) > 0 || a.quiet {
				if err := garbageView.list(a, report.Items); err != nil || a.quiet {
					return err
				}
			}
			verb := "freed"
			if dryRun {
				verb = "would free"
			}
			_, err = fmt.Fprintf(a.Stderr, "%s %s in %d objects\n", verb, size(report.Bytes), len(report.Items))
			return err
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; only say what would be freed")
	return cmd
}

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "explain ID",
		Short:             "Say what an id is, what it stands on, and who holds it",
		Example:           "  spore explain rfs-0123456789abcdef01234567",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(both(both(templates, sandboxes), both(jobs, kernels)), nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			e, err := c.Explain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			v := view[api.Explanation]{id: func(e api.Explanation) string { return e.ID }}
			return v.details(a, *e, []detail{
				{"id", e.ID}, {"kind", e.Kind}, {"state", e.State}, {"stands on", strings.Join(e.StandsOn, "\n")},
				{"held by", strings.Join(e.HeldBy, "\n")}, {"its own", size(e.ExclusiveBytes)}, {"shared", size(e.SharedBytes)},
				{"reclaimable", size(e.ReclaimableBytes)}, {"notes", strings.Join(e.Notes, "\n")},
			})
		}),
	}
}
