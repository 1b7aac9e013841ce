package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// A sandbox made by run lives on a lease that run renews, so that it ends even when run is killed.
const (
	lease      = 2 * time.Minute
	renewLease = 30 * time.Second
)

func (a *app) runCommand() *cobra.Command {
	var f execFlags
	var life lifeFlags
	var where whereFlags
	var wiring wiringFlags
	var labels mapFlag
	var keep bool
	cmd := &cobra.Command{
		Use:   "run TEMPLATE [--] [COMMAND [ARG...]]",
		Short: "Start a sandbox, run a command in it, and remove it",
		Long: `Start a sandbox from a template or a snapshot, run a command in it, and remove it at the end. Without a command the
image's own entrypoint and command are run.

The exit code is the command's; 125 when Spore failed, 126 when the command cannot be run, 127 when there is none.
Signals are passed on to the command; the third interrupt kills it. However run ends, the sandbox goes with it,
unless --keep is given.`,
		Example:           "  spore run python -- python3 -c 'print(6*7)'\n  spore run -it python\n  spore run --keep --ttl 1h -p 8080:80 web",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(templates, nil),
		RunE: a.runRaw(func(cmd *cobra.Command, args []string) error {
			if err := life.check(cmd); err != nil {
				return err
			}
			if life.onEnd != "" && !keep {
				return usage(cmd, errors.New("--on-end needs --keep"))
			}
			c, err := a.connect()
			if err != nil {
				return sporeFailure(err)
			}
			args = dashes(args)
			r := &running{app: a, c: c, flags: &f, life: life, where: where, labels: labels.values, keep: keep}
			r.network, r.wiring = wiring.network(cmd), wiring
			return r.run(cmd.Context(), args[0], args[1:])
		}),
	}
	f.add(cmd, a)
	life.add(cmd)
	where.add(cmd, a)
	wiring.add(cmd)
	wiring.addDisks(cmd)
	cmd.Flags().Var(&labels, "label", "label to attach: KEY=VALUE")
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the sandbox when the command has ended, and print its id")
	return cmd
}

// running is one run of one sandbox.
type running struct {
	app    *app
	c      *client.Client
	flags  *execFlags
	life   lifeFlags
	where  whereFlags
	labels map[string]string
	keep   bool

	network api.Network
	wiring  wiringFlags
}

func (r *running) run(ctx context.Context, template string, words []string) (err error) {
	signals, stop := commandSignals()
	defer stop()
	if len(words) == 0 {
		if words, err = r.ownCommand(ctx, template); err != nil {
			return sporeFailure(err)
		}
	}
	s, err := r.create(ctx, template, signals)
	if err != nil {
		return err
	}
	defer func() { err = r.end(ctx, s, err) }()
	defer r.holdLease(ctx, s.ID)()
	return r.app.execute(ctx, r.c.Sandbox(s.ID), r.flags, r.flags.env.values, words, signals)
}

// ownCommand is what the image itself would run.
func (r *running) ownCommand(ctx context.Context, template string) ([]string, error) {
	t, err := r.c.GetTemplate(ctx, template)
	if err != nil {
		return nil, err
	}
	words := append(append([]string{}, t.Process.Entrypoint...), t.Process.Cmd...)
	if len(words) == 0 {
		return nil, spore.Invalidf("", "the image of %s has no command of its own", template).WithHint("spore run %s -- COMMAND", template)
	}
	return words, nil
}

// create makes the sandbox. A signal meanwhile does not cut the request off, which would leave the sandbox behind
// unknown: it is waited for, and then goes.
func (r *running) create(ctx context.Context, template string, signals <-chan os.Signal) (*api.Sandbox, error) {
	req := api.CreateRequest{
		Template: template, Env: r.flags.env.values, Labels: r.labels, OnEnd: spore.EndAction(r.life.onEnd), Nodes: r.where.nodes, PreferredNode: r.where.prefer,
		Network: r.network, Ports: r.wiring.ports.list, Limits: r.wiring.limits, Disks: r.wiring.disks.list,
	}
	if req.TTLSeconds = client.Seconds(r.life.ttl); !r.keep && (r.life.ttl == 0 || r.life.ttl > lease) {
		req.TTLSeconds = client.Seconds(lease)
	}
	type result struct {
		s   *api.Sandbox
		err error
	}
	made := make(chan result, 1)
	go func() {
		s, err := r.c.CreateSandbox(making(ctx), req)
		made <- result{s, err}
	}()
	var interrupted syscall.Signal
	for {
		select {
		case got := <-made:
			if got.err != nil {
				return nil, sporeFailure(got.err)
			}
			if interrupted != 0 || ctx.Err() != nil {
				r.keep = false
				return nil, r.end(ctx, got.s, &exitError{code: exitSignal + int(max(interrupted, syscall.SIGINT))})
			}
			return got.s, nil
		case s := <-signals:
			switch s {
			case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
				if interrupted == 0 {
					fmt.Fprintln(r.app.Stderr, "ending as soon as the sandbox is there to be removed")
				}
				interrupted = s.(syscall.Signal)
			}
		}
	}
}

// holdLease renews the sandbox's lease until the answered function is called.
func (r *running) holdLease(ctx context.Context, id string) func() {
	if r.keep {
		return func() {}
	}
	var ends time.Time
	if r.life.ttl > 0 {
		ends = time.Now().Add(r.life.ttl)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(renewLease)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			next := lease
			if !ends.IsZero() {
				if next = min(next, time.Until(ends)); next <= 0 {
					return
				}
			}
			// One renewal that fails leaves time for three more.
			r.c.ExtendSandbox(ctx, id, next, "")
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// end removes the sandbox, or says how to find it, and passes on how the command ended.
func (r *running) end(ctx context.Context, s *api.Sandbox, err error) error {
	if r.keep {
		fmt.Fprintln(r.app.Stderr, s.ID)
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	rmErr := r.c.DeleteSandbox(ctx, s.ID)
	if rmErr == nil || spore.CodeOf(rmErr) == spore.CodeNotFound {
		return err
	}
	rmErr = fmt.Errorf("sandbox %s could not be removed and ends by itself within %s: %w", s.ID, lease, rmErr)
	var exit *exitError
	if errors.As(err, &exit) {
		return &exitError{code: exit.code, err: errors.Join(exit.err, rmErr)}
	}
	return sporeFailure(errors.Join(err, rmErr))
}
