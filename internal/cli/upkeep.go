package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
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

var policyView = view[api.PolicyRemoval]{
	id: func(r api.PolicyRemoval) string { return r.TemplateID },
	columns: []column[api.PolicyRemoval]{
		{"id", false, func(r api.PolicyRemoval) string { return r.TemplateID }},
		{"name", false, func(r api.PolicyRemoval) string { return r.Name }},
		{"kind", true, func(r api.PolicyRemoval) string { return string(r.Kind) }},
		{"policy", false, func(r api.PolicyRemoval) string { return r.Policy }},
		{"why", false, func(r api.PolicyRemoval) string { return r.Detail }},
	},
}

func (a *app) gcCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what policies no longer keep, and free the bytes that nothing holds",
		Long: `Remove the snapshots that the retention policy of the server no longer keeps, and free the bytes that nothing holds any
more. --dry-run says which.`,
		Example: "  spore gc --dry-run\n  spore gc",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			var report *api.GarbageReport
			err := a.waiting(cmd.Context(), "collecting", func(ctx context.Context) (err error) {
				report, err = c.CollectGarbage(ctx, dryRun)
				return err
			})
			if err != nil {
				return err
			}
			return a.printGarbage(report)
		}),
	}
	dryRunFlag(cmd, &dryRun)
	return cmd
}

func (a *app) printGarbage(r *api.GarbageReport) error {
	if a.output == "json" && !a.quiet {
		return a.json(r)
	}
	freed, removed := "freed", "removed"
	if r.DryRun {
		freed, removed = "would free", "would remove"
	}
	if len(r.Policies) > 0 {
		if err := policyView.list(a, r.Policies); err != nil {
			return err
		}
		if !a.quiet && len(r.Items) > 0 {
			fmt.Fprintln(a.Stdout)
		}
	}
	if len(r.Items) > 0 {
		if err := garbageView.list(a, r.Items); err != nil {
			return err
		}
	}
	if a.quiet {
		return nil
	}
	if len(r.Policies) > 0 {
		fmt.Fprintf(a.Stderr, "%s %d snapshots by policy\n", removed, len(r.Policies))
	}
	_, err := fmt.Fprintf(a.Stderr, "%s %s in %d objects\n", freed, size(r.Bytes), len(r.Items))
	return err
}

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "explain ID",
		Short:             "Say what an id is, what it stands on, and who holds it",
		Example:           "  spore explain rfs-0123456789abcdef01234567",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(both(both(templates, sandboxes), both(both(jobs, artifacts), both(kernels, nodes))), nothing),
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

func (a *app) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics [PREFIX...]",
		Short: "Print what the server counts and measures",
		Long: `Print what the server counts and measures, as Prometheus reads it: jobs, nodes, sandboxes, disks, and how long each stage
of resolving a create takes. With prefixes, only what is called so.`,
		Example: "  spore metrics\n  spore metrics spore_resolve",
		Args:    atLeast(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var all strings.Builder
			if err := c.Metrics(cmd.Context(), &all); err != nil {
				return err
			}
			for line := range strings.Lines(all.String()) {
				if called := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "); len(args) == 0 || slices.ContainsFunc(args, func(p string) bool { return strings.HasPrefix(called, p) }) {
					if _, err := io.WriteString(a.Stdout, printable(line, true)); err != nil {
						return err
					}
				}
			}
			return nil
		}),
	}
}
