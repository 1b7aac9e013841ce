package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) snapshotView() view[api.Template] {
	return view[api.Template]{
		id: func(t api.Template) string { return t.ID },
		columns: []column[api.Template]{
			{"id", false, func(t api.Template) string { return t.ID }},
			{"name", false, func(t api.Template) string { return t.Name }},
			{"status", false, func(t api.Template) string { return string(t.Status) }},
			{"sandbox", false, func(t api.Template) string { return t.OriginSandbox }},
			{"parent", false, func(t api.Template) string { return t.ParentID }},
			{"memory kept", true, func(t api.Template) string { return size(t.MemoryBytes) }},
			{"disk kept", true, func(t api.Template) string { return size(t.DiskBytes) }},
			{"kept", false, func(t api.Template) string { return size(t.MemoryBytes + t.DiskBytes) }},
			{"ephemeral", true, func(t api.Template) string { return yes(t.Ephemeral) }},
			{"labels", true, func(t api.Template) string { return pairs(t.Labels) }},
			{"age", false, func(t api.Template) string { return a.age(t.CreatedAt) }},
		},
	}
}

func (a *app) snapshotCommand() *cobra.Command {
	return newGroup("snapshot", "Take, list and delete points in a sandbox's life", `  spore snapshot create s0a1b2c3d4e5f60718293 --name before-upgrade
  spore snapshot log --graph`,
		a.snapshotCreate(), a.snapshotList(), a.snapshotShow(),
		a.removal("rm", "snapshots", "spore snapshot rm", snapshots, (*client.Client).DeleteSnapshot), a.snapshotLog())
}

func (a *app) snapshotCreate() *cobra.Command {
	var name string
	var labels mapFlag
	cmd := &cobra.Command{
		Use:               "create SANDBOX",
		Short:             "Snapshot a running sandbox, which goes on",
		Example:           "  spore snapshot create s0a1b2c3d4e5f60718293 --name before-upgrade",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := makeOrUndo(cmd.Context(), func(ctx context.Context) (*api.Template, error) {
				return c.CreateSnapshot(ctx, args[0], api.SnapshotRequest{Name: name, Labels: labels.values})
			}, func(ctx context.Context, t *api.Template) error {
				_, err := c.DeleteSnapshot(ctx, t.ID, false)
				return err
			})
			if err != nil {
				return err
			}
			return a.snapshotView().one(a, *t)
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "a name for it")
	cmd.Flags().Var(&labels, "label", "label to attach: KEY=VALUE")
	return cmd
}

func (a *app) snapshotList() *cobra.Command {
	var params api.ListSnapshotsParams
	var status string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List snapshots, newest first",
		Example: "  spore snapshot ls --sandbox s0a1b2c3d4e5f60718293",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			params.Status = spore.TemplateStatus(strings.ToUpper(status))
			found, err := gather(c.ListSnapshots(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.snapshotView().list(a, found)
		}),
	}
	cmd.Flags().StringVar(&params.OriginSandbox, "sandbox", "", "only those of this sandbox")
	cmd.Flags().StringVar(&status, "status", "", "only those with this status, such as READY")
	cmd.Flags().StringArrayVar(&params.Label, "label", nil, "only those with this label, as KEY=VALUE")
	cmd.Flags().BoolVar(&params.All, "all", false, "deleted and ephemeral ones too")
	cmd.RegisterFlagCompletionFunc("sandbox", a.complete(sandboxes))
	return cmd
}

func (a *app) snapshotShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show SNAPSHOT",
		Short:             "Show a snapshot",
		Example:           "  spore snapshot show before-upgrade",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(snapshots, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.GetSnapshot(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.snapshotView().details(a, *t, templateDetails(t))
		}),
	}
}
