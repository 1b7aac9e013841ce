package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

var deletionView = view[api.Deletion]{
	id: func(d api.Deletion) string { return d.ID },
	columns: []column[api.Deletion]{
		{"id", false, func(d api.Deletion) string { return d.ID }},
		{"deleted", false, func(d api.Deletion) string {
			switch {
			case d.DryRun && len(d.Running) > 0:
				return "with --force only"
			case d.DryRun:
				return "would be"
			}
			return "yes"
		}},
		{"frees", false, func(d api.Deletion) string { return size(d.FreesBytes) }},
		{"retained", false, func(d api.Deletion) string { return size(d.RetainBytes) }},
		{"replicas", true, func(d api.Deletion) string { return fmt.Sprint(d.Replicas) }},
		{"running", false, func(d api.Deletion) string { return strings.Join(d.Running, ",") }},
		{"held by", false, func(d api.Deletion) string { return strings.Join(d.HeldBy, ",") }},
		{"job", true, func(d api.Deletion) string { return d.JobID }},
	},
}

// remover deletes what the refs name. It answers what was deleted, also when something was not.
type remover func(ctx context.Context, c *client.Client, refs []string, opt client.DeleteOptions) ([]api.Deletion, error)

// removesAtATime is how many templates one request deletes.
const removesAtATime = 50

// removeTemplates deletes templates and snapshots, many with one request.
func removeTemplates(ctx context.Context, c *client.Client, refs []string, opt client.DeleteOptions) (deleted []api.Deletion, _ error) {
	var errs []error
	for len(refs) > 0 {
		n := min(len(refs), removesAtATime)
		results, err := c.DeleteTemplates(ctx, refs[:n], opt)
		if err != nil {
			return deleted, errors.Join(append(errs, err)...)
		}
		for _, r := range results {
			if r.Deletion != nil {
				deleted = append(deleted, *r.Deletion)
			}
			if err := client.DeletionError(r); err != nil {
				errs = append(errs, err)
			}
		}
		refs = refs[n:]
	}
	return deleted, errors.Join(errs...)
}

// removeSnapshots deletes snapshots, and nothing else.
func removeSnapshots(ctx context.Context, c *client.Client, refs []string, opt client.DeleteOptions) (deleted []api.Deletion, _ error) {
	return deleted, many(ctx, refs, func(ref string) error {
		d, err := c.DeleteSnapshot(ctx, ref, opt)
		if err == nil {
			deleted = append(deleted, *d)
		}
		return err
	})
}

// removal makes the rm command of templates or of snapshots.
func (a *app) removal(what, path string, complete completer, remove remover) *cobra.Command {
	var opt client.DeleteOptions
	cmd := &cobra.Command{
		Use:   "rm REF...",
		Short: "Delete " + what,
		Long: "Delete " + what + `, by id, name or alias. What stands on them is never broken: bytes that are still held
are kept until nothing holds them. While a sandbox runs on one it is refused; with --force it is deleted all the same, and
the sandbox goes on. --dry-run says what would happen.`,
		Example:           "  " + path + " --dry-run web\n  " + path + " web python",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(complete),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var deleted []api.Deletion
			err := a.waiting(cmd.Context(), "deleting", func(ctx context.Context) (err error) {
				deleted, err = remove(ctx, c, args, opt)
				return err
			})
			if len(deleted) == 0 && err != nil {
				return err
			}
			return errors.Join(deletionView.list(a, deleted), err)
		}),
	}
	cmd.Flags().BoolVar(&opt.Force, "force", false, "although sandboxes run on it; they go on")
	dryRunFlag(cmd, &opt.DryRun)
	return cmd
}

func dryRunFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "dry-run", false, "change nothing; only say what would happen")
}
