package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) forkCommand() *cobra.Command {
	var count int
	var life lifeFlags
	var env, labels mapFlag
	var wiring wiringFlags
	env.fromEnv = a.Getenv
	cmd := &cobra.Command{
		Use:   "fork SANDBOX|SNAPSHOT",
		Short: "Start sandboxes that go on from where a sandbox or a snapshot stands",
		Long: `Start sandboxes that go on from where a running sandbox or a snapshot stands. A fork that fails does not stop the
others; the exit code is then 1. Each publishes its ports at places of its own: those of the original belong to that.`,
		Example:           "  spore fork s0a1b2c3d4e5f60718293 -n 4\n  spore fork before-upgrade --ttl 10m -q",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(both(sandboxes, snapshots), nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := life.check(cmd); err != nil {
				return err
			}
			if count < 1 {
				return usage(cmd, errors.New("-n must be at least 1"))
			}
			var forks []api.ForkResult
			err := a.waiting(cmd.Context(), "forking", func(ctx context.Context) (err error) {
				forks, err = makeOrUndo(ctx, func(ctx context.Context) ([]api.ForkResult, error) {
					return c.Fork(ctx, api.ForkRequest{
						Source: args[0], Count: count, TTLSeconds: client.Seconds(life.ttl), OnEnd: spore.EndAction(life.onEnd), Env: env.values, Labels: labels.values,
						Network: wiring.network(cmd), Ports: wiring.ports.list, Limits: wiring.limits,
					})
				}, endForks(c))
				return err
			})
			if err != nil {
				return err
			}
			return a.forked(forks)
		}),
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many")
	cmd.Flags().VarP(&env, "env", "e", "environment of every process: KEY=VALUE, or KEY for the value it has here")
	cmd.Flags().Var(&labels, "label", "label to attach: KEY=VALUE")
	life.add(cmd)
	wiring.add(cmd)
	return cmd
}

// endForks ends what a fork made.
func endForks(c *client.Client) func(context.Context, []api.ForkResult) error {
	return func(ctx context.Context, forks []api.ForkResult) error {
		var errs []error
		for _, f := range forks {
			if f.Sandbox != nil {
				errs = append(errs, c.DeleteSandbox(ctx, f.Sandbox.ID))
			}
		}
		return errors.Join(errs...)
	}
}

// forked prints the forks and answers the errors of those that failed.
func (a *app) forked(forks []api.ForkResult) error {
	var boxes []api.Sandbox
	var errs []error
	for i, f := range forks {
		if f.Sandbox != nil {
			boxes = append(boxes, *f.Sandbox)
		}
		if err := client.ForkError(f); err != nil {
			errs = append(errs, fmt.Errorf("fork %d of %d: %w", i+1, len(forks), err))
		}
	}
	if a.output == "json" && !a.quiet {
		return errors.Join(append([]error{a.json(forks)}, errs...)...)
	}
	return errors.Join(append([]error{a.sandboxView().list(a, boxes)}, errs...)...)
}

func (a *app) rollbackCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "rollback SANDBOX SNAPSHOT",
		Short: "Bring a sandbox back to a snapshot",
		Long: `Bring a sandbox back to a snapshot, in memory and on disk. What it did since is lost; take a snapshot first if you
may want it. If the snapshot cannot be thawed the sandbox goes on as it was.`,
		Example:           "  spore rollback --dry-run s0a1b2c3d4e5f60718293 before-upgrade\n  spore rollback s0a1b2c3d4e5f60718293 before-upgrade",
		Args:              exactly(2),
		ValidArgsFunction: a.complete(sandboxes, snapshots, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if dryRun {
				return a.planRollback(cmd.Context(), c, args[0], args[1])
			}
			// There is no undoing, so an interrupt only waits for the outcome.
			var s *api.Sandbox
			err := a.working(cmd.Context(), "rolling back", aboutSandbox(cmd.Context(), c, args[0]), func(ctx context.Context) (err error) {
				s, err = c.Rollback(making(ctx), args[0], args[1])
				return err
			})
			if err != nil {
				return err
			}
			return a.sandboxView().one(a, *s)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; only say what would happen")
	return cmd
}

func (a *app) planRollback(ctx context.Context, c *client.Client, sandbox, snapshot string) error {
	s, err := c.GetSandbox(ctx, sandbox)
	if err != nil {
		return err
	}
	t, err := c.GetSnapshot(ctx, snapshot)
	if err != nil {
		return err
	}
	if t.Status != spore.TemplateReady && t.Status != spore.TemplatePartiallyReady {
		return spore.Errorf(spore.CodeConflict, "snapshot %s is %s", snapshot, t.Status)
	}
	fmt.Fprintf(a.Stderr, "would bring back to %s, taken %s ago; what was done since would be lost\n", t.ID, a.age(t.CreatedAt))
	return a.sandboxView().one(a, *s)
}
