package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) sandboxView() view[api.Sandbox] {
	return view[api.Sandbox]{
		id: func(s api.Sandbox) string { return s.ID },
		columns: []column[api.Sandbox]{
			{"id", false, func(s api.Sandbox) string { return s.ID }},
			{"state", false, func(s api.Sandbox) string { return string(s.State) }},
			{"template", false, func(s api.Sandbox) string { return s.TemplateID }},
			{"vcpus", true, func(s api.Sandbox) string { return fmt.Sprint(s.VCPUs) }},
			{"memory", false, func(s api.Sandbox) string { return mib(s.MemoryMiB) }},
			{"disk", true, func(s api.Sandbox) string { return mib(s.DiskMiB) }},
			{"generation", true, func(s api.Sandbox) string { return fmt.Sprint(s.Generation) }},
			{"age", false, func(s api.Sandbox) string { return a.age(s.CreatedAt) }},
			{"ends in", false, func(s api.Sandbox) string { return a.left(s.EndsAt) }},
			{"on end", true, func(s api.Sandbox) string { return string(s.OnEnd) }},
			{"node", true, func(s api.Sandbox) string { return s.NodeID }},
			{"network", true, func(s api.Sandbox) string { return string(s.Network.Mode) }},
			{"ports", true, func(s api.Sandbox) string { return published(s.Ports) }},
			{"limits", true, func(s api.Sandbox) string { return limitWords(s.Limits) }},
			{"labels", true, func(s api.Sandbox) string { return pairs(s.Labels) }},
			{"reason", true, func(s api.Sandbox) string { return s.StateReason }},
		},
	}
}

func sandboxDetails(s *api.Sandbox) []detail {
	ends := stamp(s.EndsAt)
	if ends == "" {
		ends = "never"
	}
	return []detail{
		{"id", s.ID}, {"state", string(s.State)}, {"reason", s.StateReason}, {"template", s.TemplateID}, {"node", s.NodeID},
		{"generation", fmt.Sprint(s.Generation)}, {"vcpus", fmt.Sprint(s.VCPUs)}, {"memory", mib(s.MemoryMiB)}, {"disk", mib(s.DiskMiB)},
		{"labels", pairs(s.Labels)}, {"env", strings.Join(sortedKeys(s.Env), ",")}, {"booted cold", yes(s.Cold)},
		{"network", networkWords(s.Network)}, {"ports", published(s.Ports)}, {"limits", limitWords(s.Limits)}, {"disks", diskWords(s.Disks)},
		{"created", stamp(s.CreatedAt)}, {"updated", stamp(s.UpdatedAt)}, {"ends", ends}, {"on end", string(s.OnEnd)},
	}
}

func (a *app) sandboxCommand() *cobra.Command {
	return newGroup("sandbox", "Start, use and end microVMs", `  spore sandbox create python --ttl 1h
  spore sandbox exec -it s0a1b2c3d4e5f60718293 sh`,
		a.sandboxCreate(), a.sandboxList(), a.sandboxShow(), a.sandboxRemove(), a.sandboxPause(), a.sandboxResume(), a.sandboxExtend(), a.sandboxSet(),
		a.sandboxExec(), a.sandboxCopy(), a.sandboxLogs(), a.sandboxRefs())
}

func (a *app) sandboxCreate() *cobra.Command {
	var life lifeFlags
	var where whereFlags
	var env, labels mapFlag
	var wiring wiringFlags
	var preview bool
	env.fromEnv = a.Getenv
	cmd := &cobra.Command{
		Use:   "create TEMPLATE",
		Short: "Start a sandbox from a template or a snapshot",
		Long: `Start a sandbox from a template or a snapshot. What the template keeps for its sandboxes holds where nothing else is
asked for. With --preview nothing is started: it is shown what would be asked for in all, on which node the sandbox would
run, and why not on others.`,
		Example: `  spore sandbox create python --ttl 1h --on-end pause -e TOKEN
  spore sandbox create web -p 8080:80 --network user --internet off --allow-domain example.com
  spore sandbox create python --preview --prefer-node node-2`,
		Args:              exactly(1),
		ValidArgsFunction: a.complete(templates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := life.check(cmd); err != nil {
				return err
			}
			req := api.CreateRequest{
				Template: args[0], TTLSeconds: client.Seconds(life.ttl), OnEnd: spore.EndAction(life.onEnd), Env: env.values, Labels: labels.values,
				Nodes: where.nodes, PreferredNode: where.prefer,
				Network: wiring.network(cmd), Ports: wiring.ports.list, Limits: wiring.limits, Disks: wiring.disks.list,
			}
			if preview {
				return a.preview(cmd.Context(), c, req)
			}
			var s *api.Sandbox
			err := a.waiting(cmd.Context(), "starting", func(ctx context.Context) (err error) {
				s, err = makeOrUndo(ctx, func(ctx context.Context) (*api.Sandbox, error) { return c.CreateSandbox(ctx, req) },
					func(ctx context.Context, s *api.Sandbox) error { return c.DeleteSandbox(ctx, s.ID) })
				return err
			})
			if err != nil {
				return err
			}
			return a.sandboxView().one(a, *s)
		}),
	}
	cmd.Flags().VarP(&env, "env", "e", "environment of every process: KEY=VALUE, or KEY for the value it has here")
	cmd.Flags().Var(&labels, "label", "label to attach: KEY=VALUE")
	cmd.Flags().BoolVar(&preview, "preview", false, "start nothing; only say what would happen")
	life.add(cmd)
	where.add(cmd, a)
	wiring.add(cmd)
	wiring.addDisks(cmd)
	return cmd
}

func (a *app) sandboxList() *cobra.Command {
	var params api.ListSandboxesParams
	var state string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List sandboxes, newest first",
		Example: "  spore sandbox ls --state RUNNING,PAUSED\n  spore sandbox rm $(spore sandbox ls -q)",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			for _, s := range splitList(state) {
				params.State = append(params.State, spore.SandboxState(strings.ToUpper(s)))
			}
			found, err := gather(c.ListSandboxes(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.sandboxView().list(a, found)
		}),
	}
	cmd.Flags().StringVar(&state, "state", "", "only these, separated by commas: CREATING, RUNNING, PAUSED, FAILED")
	cmd.Flags().StringVar(&params.Template, "template", "", "only those that stand on this template or snapshot")
	cmd.Flags().StringVar(&params.Node, "node", "", "only those on this node")
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	cmd.Flags().StringArrayVar(&params.Label, "label", nil, "only those with this label, as KEY=VALUE")
	cmd.Flags().BoolVar(&params.All, "all", false, "those that have ended, too")
	cmd.RegisterFlagCompletionFunc("template", a.complete(templates))
	return cmd
}

func (a *app) sandboxShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show SANDBOX",
		Aliases:           []string{"info"},
		Short:             "Show a sandbox",
		Example:           "  spore sandbox show s0a1b2c3d4e5f60718293",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			s, err := c.GetSandbox(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.sandboxView().details(a, *s, sandboxDetails(s))
		}),
	}
}

func (a *app) sandboxRemove() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:               "rm SANDBOX...",
		Short:             "End sandboxes and remove their disks",
		Example:           "  spore sandbox rm --dry-run s0a1b2c3d4e5f60718293\n  spore sandbox rm s0a1b2c3d4e5f60718293",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(sandboxes),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var gone []api.Sandbox
			err := many(cmd.Context(), args, func(id string) error {
				s, err := c.GetSandbox(cmd.Context(), id)
				if err != nil {
					return err
				}
				if !dryRun {
					if err := c.DeleteSandbox(cmd.Context(), id); err != nil {
						return err
					}
					s.State = spore.SandboxKilled
				}
				gone = append(gone, *s)
				return nil
			})
			if dryRun && len(gone) > 0 {
				fmt.Fprintln(a.Stderr, "would be ended:")
			}
			if len(gone) == 0 && err != nil {
				return err
			}
			return errors.Join(a.sandboxView().list(a, gone), err)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; only say what would happen")
	return cmd
}

// eachSandbox makes a command that does one thing to each of the named sandboxes.
func (a *app) eachSandbox(cmd *cobra.Command, do func(cmd *cobra.Command, c *client.Client, id string) (*api.Sandbox, error)) *cobra.Command {
	cmd.Args = atLeast(1)
	cmd.ValidArgsFunction = a.complete(sandboxes)
	cmd.RunE = a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
		var changed []api.Sandbox
		err := many(cmd.Context(), args, func(id string) error {
			s, err := do(cmd, c, id)
			if err == nil {
				changed = append(changed, *s)
			}
			return err
		})
		if len(changed) == 0 && err != nil {
			return err
		}
		return errors.Join(a.sandboxView().list(a, changed), err)
	})
	return cmd
}

func (a *app) sandboxPause() *cobra.Command {
	return a.eachSandbox(&cobra.Command{
		Use:     "pause SANDBOX...",
		Short:   "Freeze sandboxes to disk, where they hold no memory",
		Example: "  spore sandbox pause s0a1b2c3d4e5f60718293",
	}, func(cmd *cobra.Command, c *client.Client, id string) (*api.Sandbox, error) {
		return c.PauseSandbox(cmd.Context(), id)
	})
}

func (a *app) sandboxResume() *cobra.Command {
	var ttl time.Duration
	cmd := a.eachSandbox(&cobra.Command{
		Use:     "resume SANDBOX...",
		Short:   "Bring paused sandboxes back",
		Example: "  spore sandbox resume s0a1b2c3d4e5f60718293 --ttl 1h",
	}, func(cmd *cobra.Command, c *client.Client, id string) (*api.Sandbox, error) {
		if !cmd.Flags().Changed("ttl") {
			return c.ResumeSandbox(cmd.Context(), id, nil)
		}
		return c.ResumeSandbox(cmd.Context(), id, &ttl)
	})
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "time to live from now, 0 for ever (default as it was)")
	return cmd
}

func (a *app) sandboxExtend() *cobra.Command {
	var life lifeFlags
	cmd := a.eachSandbox(&cobra.Command{
		Use:     "extend SANDBOX... --ttl TIME",
		Short:   "Set when sandboxes end, counted from now",
		Example: "  spore sandbox extend s0a1b2c3d4e5f60718293 --ttl 30m --on-end pause",
	}, func(cmd *cobra.Command, c *client.Client, id string) (*api.Sandbox, error) {
		if err := life.check(cmd); err != nil {
			return nil, err
		}
		return c.ExtendSandbox(cmd.Context(), id, life.ttl, spore.EndAction(life.onEnd))
	})
	life.add(cmd)
	cmd.MarkFlagRequired("ttl")
	return cmd
}

func (a *app) sandboxLogs() *cobra.Command {
	var console, follow bool
	limit := sizeInBytes(1 << 20)
	cmd := &cobra.Command{
		Use:               "logs SANDBOX",
		Short:             "Print what a sandbox's own process, or its console, has printed",
		Example:           "  spore sandbox logs s0a1b2c3d4e5f60718293\n  spore sandbox logs -f s0a1b2c3d4e5f60718293\n  spore sandbox logs --console s0a1b2c3d4e5f60718293",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			switch {
			case follow && console:
				return usage(cmd, errors.New("--follow is for the sandbox's own process; the console cannot be followed"))
			case follow:
				err := c.Sandbox(args[0]).FollowLogs(cmd.Context(), int(limit), a.guestOutput(a.Stdout))
				if cmd.Context().Err() != nil {
					return nil // the user has seen enough
				}
				return err
			}
			return c.SandboxLogs(cmd.Context(), args[0], console, int(limit), a.guestOutput(a.Stdout))
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the process ends")
	cmd.Flags().BoolVar(&console, "console", false, "the serial console of the guest")
	cmd.Flags().Var(&limit, "limit", "at most this many bytes, counted from the end")
	return cmd
}
