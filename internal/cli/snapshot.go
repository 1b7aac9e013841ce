package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

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
			{"display name", true, func(t api.Template) string { return t.DisplayName }},
			{"memory kept", true, func(t api.Template) string { return size(t.MemoryBytes) }},
			{"disk kept", true, func(t api.Template) string { return size(t.DiskBytes) }},
			{"kept", false, func(t api.Template) string { return size(t.MemoryBytes + t.DiskBytes) }},
			{"origin node", true, func(t api.Template) string { return t.OriginNode }},
			{"retain", true, func(t api.Template) string { return yes(t.Retain) }},
			{"author", true, func(t api.Template) string { return t.Author }},
			{"reason", true, func(t api.Template) string { return t.Reason }},
			{"ephemeral", true, func(t api.Template) string { return yes(t.Ephemeral) }},
			{"labels", true, func(t api.Template) string { return pairs(t.Labels) }},
			{"age", false, func(t api.Template) string { return a.age(t.CreatedAt) }},
		},
	}
}

func (a *app) snapshotCommand() *cobra.Command {
	return newGroup("snapshot", "Take, list and delete points in a sandbox's life", `  spore snapshot create s0a1b2c3d4e5f60718293 --name before-upgrade
  spore snapshot log --graph`,
		a.snapshotCreate(), a.snapshotList(), a.snapshotInfo(), a.redo("snapshot", snapshots),
		a.removal("snapshots", "spore snapshot rm", snapshots, removeSnapshots), a.log("spore snapshot log"))
}

func (a *app) snapshotCreate() *cobra.Command {
	var name string
	var def definitionFlags
	var whilePaused string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "create SANDBOX",
		Short: "Snapshot a running sandbox, which goes on",
		Long: `Snapshot a running sandbox, which goes on. With --while-paused a shell command is run on this machine while the sandbox stands
still, for what belongs to the same instant, such as a disk of the machine's that it writes to; it finds SPORE_SANDBOX_ID and
SPORE_SNAPSHOT_ID in its environment. When it fails, or takes longer than --pause-limit, there is no snapshot, and the sandbox goes on.`,
		Example: `  spore snapshot create s0a1b2c3d4e5f60718293 --name before-upgrade --reason 'before the upgrade' --retain
  spore snapshot create s0a1b2c3d4e5f60718293 --while-paused 'cp --reflink=auto /srv/disks/data.img /srv/disks/data-1.img'`,
		Args:              exactly(1),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var t *api.Template
			req := api.SnapshotRequest{
				Name: name, DisplayName: def.displayName, Labels: def.labels.values, Retain: def.retain, Author: def.by(a, cmd), Reason: def.reason,
			}
			if whilePaused != "" {
				if limit < time.Second || limit > 5*time.Minute {
					return usage(cmd, errors.New("--pause-limit takes 1s to 5m"))
				}
				t, err := a.heldSnapshot(cmd.Context(), c, args[0], req, whilePaused, limit)
				if err != nil {
					return err
				}
				return a.snapshotView().one(a, *t)
			}
			err := a.working(cmd.Context(), "snapshot", aboutSandbox(cmd.Context(), c, args[0]), func(ctx context.Context) (err error) {
				t, err = makeOrUndo(ctx, func(ctx context.Context) (*api.Template, error) {
					return c.CreateSnapshot(ctx, args[0], req)
				}, func(ctx context.Context, t *api.Template) error {
					_, err := c.DeleteSnapshot(ctx, t.ID, client.DeleteOptions{})
					return err
				})
				return err
			})
			if err != nil {
				return err
			}
			return a.snapshotView().one(a, *t)
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "a name for it")
	cmd.Flags().StringVar(&whilePaused, "while-paused", "", "shell command to run here while the sandbox stands still")
	cmd.Flags().DurationVar(&limit, "pause-limit", 30*time.Second, "how long that may take")
	def.add(cmd)
	return cmd
}

func (a *app) snapshotList() *cobra.Command {
	var filter filterFlags
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List snapshots, newest first",
		Example: "  spore snapshot ls --sandbox s0a1b2c3d4e5f60718293\n  spore snapshot ls --status failed --label team=red",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if err := filter.check(cmd); err != nil {
				return err
			}
			found, err := gather(c.ListSnapshots(cmd.Context(), api.ListSnapshotsParams{
				ID: filter.id, Name: filter.name, Status: filter.statusWord(), OriginSandbox: filter.sandbox, Parent: filter.parent, Label: filter.labels, All: filter.all,
			}))
			if err != nil {
				return err
			}
			return a.snapshotView().list(a, found)
		}),
	}
	filter.add(cmd, a)
	return cmd
}

func (a *app) snapshotInfo() *cobra.Command {
	return a.info("snapshot", "Show a snapshot, where it is and who uses it", snapshots, (*client.Client).GetSnapshot, (*client.Client).GetSnapshotWithRequest, a.snapshotView)
}
