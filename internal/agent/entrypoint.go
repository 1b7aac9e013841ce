package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config is the process part of an image's configuration.
type Config struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`        // NAME=VALUE
	User       string   `json:"user,omitempty"`       // USER, UID, USER:GROUP or UID:GID; root when empty
	WorkingDir string   `json:"workingDir,omitempty"` // made when it does not exist
	StopSignal string   `json:"stopSignal,omitempty"` // a name such as SIGQUIT, or a number; SIGTERM when empty
	// Console copies the command's output to the guest's console.
	Console bool `json:"console,omitempty"`
}

// EntrypointTag selects the image's own command among the processes of a sandbox.
const EntrypointTag = "entrypoint"

// States of the image's own command.
const (
	EntrypointNone    = "none"    // the image has none, or was not configured yet
	EntrypointRunning = "running" //
	EntrypointExited  = "exited"  //
	EntrypointFailed  = "failed"  // could not be started
)

// Entrypoint says what has become of the image's own command.
type Entrypoint struct {
	State     string    `json:"state"`
	PID       int       `json:"pid,omitempty"`
	ExitCode  int       `json:"exitCode"`
	Status    string    `json:"status,omitempty"` // the end in words
	Error     string    `json:"error,omitempty"`  // why it could not be started
	StartedAt time.Time `json:"startedAt,omitzero"`
	ExitedAt  time.Time `json:"exitedAt,omitzero"`
}

// entrypoint is the image's own command.
type entrypoint struct {
	log *outputLog

	mu         sync.Mutex
	configured bool
	process    *Process
	stopSignal syscall.Signal
	report     Entrypoint
}

var errConfigured = errors.New("the sandbox has been configured before")

// configure takes over the image's configuration and starts its command, if it has one. That the command cannot be
// started is an error; the sandbox is configured and usable all the same. A configuration that is refused changes
// nothing.
func (a *Agent) configure(c Config) (Entrypoint, error) {
	e := &a.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.configured {
		return e.report, errConfigured
	}
	env := map[string]string{}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		if k == "" || strings.Contains(kv, "\x00") {
			return e.report, invalidf("env: %q is not of the form NAME=VALUE", kv)
		}
		env[k] = v
	}
	sig, err := parseSignal(c.StopSignal)
	if err != nil {
		return e.report, err
	}
	if _, err := a.user(c.User); err != nil {
		return e.report, err
	}
	if err := makeWorkDir(c.WorkingDir); err != nil {
		return e.report, err
	}
	a.settings.mu.Lock()
	a.settings.user, a.settings.workDir = c.User, c.WorkingDir
	a.settings.mu.Unlock()
	a.settings.merge(env)
	e.configured, e.stopSignal = true, sig
	e.report = Entrypoint{State: EntrypointNone}

	argv := append(append([]string(nil), c.Entrypoint...), c.Cmd...)
	if len(argv) == 0 {
		return e.report, nil
	}
	cwd := c.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	run := command{cmd: argv[0], args: argv[1:], cwd: cwd, user: c.User, tag: EntrypointTag}
	run.sink = func(p []byte) { e.log.Write(p) }
	if c.Console {
		run.sink = func(p []byte) {
			e.log.Write(p)
			os.Stderr.Write(p) // best effort: the log has it
		}
	}
	p, rd, err := a.run(run)
	if err != nil {
		e.report = Entrypoint{State: EntrypointFailed, Error: err.Error()}
		return e.report, err
	}
	rd.leave()
	e.process = p
	e.report = Entrypoint{State: EntrypointRunning, PID: p.child.Pid, StartedAt: time.Now()}
	go e.watch(p)
	return e.report, nil
}

func (e *entrypoint) watch(p *Process) {
	<-p.ended
	code, _, words := exit(p.status)
	fmt.Fprintf(e.log, "[the image's command has ended: %s]\n", words)
	e.log.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.report.State, e.report.ExitCode, e.report.Status, e.report.ExitedAt = EntrypointExited, code, words, time.Now()
}

// StopEntrypoint asks the image's command to end, with the signal the image wants, and waits until it has or ctx ends.
func (a *Agent) StopEntrypoint(ctx context.Context) {
	a.entry.mu.Lock()
	p, sig := a.entry.process, a.entry.stopSignal
	a.entry.mu.Unlock()
	if p == nil || p.child.Signal(sig) != nil {
		return
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
	}
}

func makeWorkDir(dir string) error {
	if dir == "" {
		return nil
	}
	if dir[0] != '/' || strings.Contains(dir, "\x00") {
		return invalidf("workDir: %q is not an absolute path", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return invalidf("workDir: %v", err)
	}
	return nil
}

// parseSignal reads a signal as images spell it: SIGTERM, TERM or 15. An empty one is SIGTERM.
func parseSignal(s string) (syscall.Signal, error) {
	if s == "" {
		return syscall.SIGTERM, nil
	}
	name := strings.ToUpper(s)
	if n, err := parseID(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	var offset int
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if n, err := fmt.Sscanf(rest, "%d", &offset); n == 1 && err == nil && offset >= 0 && offset <= 30 {
			return syscall.Signal(34 + offset), nil
		}
	}
	return 0, invalidf("stopSignal: %q is not a signal", s)
}
