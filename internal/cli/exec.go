package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/client"
)

// execFlags say how a command runs in a sandbox.
type execFlags struct {
	interactive, tty bool
	user, workDir    string
	env              mapFlag
}

func (f *execFlags) add(cmd *cobra.Command, a *app) {
	f.env.fromEnv = a.Getenv
	flags := cmd.Flags()
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "run on a terminal")
	flags.StringVarP(&f.user, "user", "u", "", "user instead of the image's own: name or number, with an optional :group")
	flags.StringVarP(&f.workDir, "workdir", "w", "", "working directory instead of the image's own")
	flags.VarP(&f.env, "env", "e", "environment to add: KEY=VALUE, or KEY for the value it has here")
	// As people know it from containers, flags after the first argument belong to the command, unless a "--" says where
	// that begins.
	flags.SetInterspersed(a.dashed)
}

// dashes drops the "--" between the first argument and the command.
func dashes(args []string) []string {
	if len(args) > 1 && args[1] == "--" {
		return append(args[:1:1], args[2:]...)
	}
	return args
}

func (a *app) sandboxExec() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec SANDBOX [--] COMMAND [ARG...]",
		Short: "Run a command in a running sandbox",
		Long: `Run a command in a running sandbox, as the image's own user in its working directory unless told otherwise.

The exit code is the command's; 125 when Spore failed, 126 when the command cannot be run, 127 when there is none.
Signals are passed on to the command; the third interrupt kills it.`,
		Example:           "  spore sandbox exec s0a1b2c3d4e5f60718293 python3 -c 'print(6*7)'\n  spore sandbox exec -it -u root s0a1b2c3d4e5f60718293 sh",
		Args:              atLeast(2),
		ValidArgsFunction: a.complete(sandboxes, nil),
		RunE: a.runRaw(func(cmd *cobra.Command, args []string) error {
			args = dashes(args)
			if len(args) < 2 {
				return usage(cmd, errors.New("no command is given"))
			}
			c, err := a.connect()
			if err != nil {
				return sporeFailure(err)
			}
			signals, stop := commandSignals()
			defer stop()
			return a.execute(cmd.Context(), c.Sandbox(args[0]), &f, f.env.values, args[1:], signals)
		}),
	}
	f.add(cmd, a)
	return cmd
}

// commandSignals catches what a command in a sandbox is to be told.
func commandSignals() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	return signals, func() { signal.Stop(signals) }
}

// sporeFailure is an error of Spore rather than of the command that it was to run.
func sporeFailure(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: exitSpore, err: err}
}

// execute runs a command, with the user's streams, and answers its exit code as an error.
func (a *app) execute(ctx context.Context, s *client.Sandbox, f *execFlags, env map[string]string, words []string, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := s.Command(ctx, words[0], words[1:]...)
	cmd.User, cmd.Dir, cmd.Env = f.user, f.workDir, env
	cmd.Stdout, cmd.Stderr = a.Stdout, a.Stderr
	if !f.tty {
		cmd.Stdout, cmd.Stderr = a.guestOutput(a.Stdout), a.guestOutput(a.Stderr)
	}
	if f.interactive {
		cmd.Stdin = a.Stdin
	}
	var t *terminal
	if f.tty {
		var err error
		if t, err = openTerminal(a.Stdin, a.Stdout, f.interactive); err != nil {
			return sporeFailure(err)
		}
		size := t.size()
		cmd.TTY = &size
		cmd.Env = withTerm(env, a.Getenv("TERM"))
	}
	err := a.attend(ctx, cmd, t, signals, cancel)
	if t != nil {
		// Before anything is printed, or the lines would step down the screen.
		err = errors.Join(err, t.close())
	}
	return exitCode(err)
}

// withTerm tells a command on a terminal which kind it is, unless the user has said.
func withTerm(env map[string]string, kind string) map[string]string {
	out := map[string]string{"TERM": kind}
	if kind == "" {
		out["TERM"] = "xterm"
	}
	for k, v := range env {
		out[k] = v
	}
	return out
}

// patience is the interrupt that kills the command. One more gives up on seeing it end.
const patience = 3

func (a *app) attend(ctx context.Context, cmd *client.Command, t *terminal, signals <-chan os.Signal, kill func()) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if t != nil {
		defer t.followSize(ctx, cmd, *cmd.TTY)()
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		interrupts := 0
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				if s == syscall.SIGINT || s == syscall.SIGTERM {
					interrupts++
				}
				if interrupts > patience {
					kill()
					return
				}
				if interrupts == patience {
					s = syscall.SIGKILL
				}
				// A command that has ended needs no signal.
				cmd.Signal(ctx, s.(syscall.Signal))
			}
		}
	}()
	return cmd.Wait()
}

// exitCode turns how a command ended into how this process ends.
func exitCode(err error) error {
	var exit *client.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return &exitError{code: exit.Code}
	case errors.Is(err, client.ErrCommandNotFound):
		return &exitError{code: exitNotFound, err: err}
	case errors.Is(err, client.ErrNotExecutable):
		return &exitError{code: exitNotExecutable, err: err}
	}
	return sporeFailure(err)
}
