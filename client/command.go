package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api/process"
)

// Reasons why a command could not be started; errors.Is finds them in the error of Start and Run.
var (
	// ErrCommandNotFound means that the sandbox has no such command.
	ErrCommandNotFound = errors.New("command not found")
	// ErrNotExecutable means that the user may not run the command, or that it is none.
	ErrNotExecutable = errors.New("not executable")
)

// TTY is the size of a terminal, in characters.
type TTY struct{ Cols, Rows uint16 }

// Command is a command to run in a sandbox, modelled on exec.Cmd: make it with Sandbox.Command, set its fields, then Run
// it, or Start and Wait for it. It runs once.
//
// When the context ends before the command does, the command's process group is killed and Wait answers
// spore.CodeCanceled. When the connection to the server breaks, the command goes on in the sandbox, and Wait answers
// spore.CodeUnreachable.
type Command struct {
	// Name is a path in the sandbox, or a name that is looked up in its PATH. Args come after it.
	Name string
	Args []string
	// Env is added to the environment of the sandbox.
	Env map[string]string
	// Dir is the working directory; "" is the image's own, and a relative one is relative to that.
	Dir string
	// User is a name or number in the guest; "" is the image's own.
	User string
	// Stdin is read until its end, or until the command ends: a Read that is under way then is left behind. Nil is empty.
	Stdin io.Reader
	// Stdout and Stderr get the output; nil throws it away. They are never written to at the same time. An error of theirs
	// kills the command.
	Stdout, Stderr io.Writer
	// TTY runs the command on a terminal of that size. All of its output then goes to Stdout.
	TTY *TTY

	sandbox *Sandbox
	ctx     context.Context

	mu     sync.Mutex
	pid    uint32
	stream *connect.ServerStreamForClient[process.StartResponse]
	waited bool
	ended  chan struct{} // closed when err says how it ended
	err    error
}

// Command answers a command that has not been started. ctx bounds its whole life.
func (s *Sandbox) Command(ctx context.Context, name string, args ...string) *Command {
	return &Command{Name: name, Args: args, sandbox: s, ctx: ctx}
}

// ExitError is the end of a command that did not go well. errors.As finds it in what Wait and Run answer.
type ExitError struct {
	// Code is the exit code; 128 and the number of the signal when a signal ended the command.
	Code int
	// Signaled says that a signal ended it.
	Signaled bool
	// Status says it in words.
	Status string
	// Stderr is the last of the standard error output, when Output collected it.
	Stderr []byte
}

func (e *ExitError) Error() string {
	if e.Status != "" {
		return e.Status
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// Run starts the command and waits for its end.
func (c *Command) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// maxStderr is how much of the standard error output an ExitError carries.
const maxStderr = 32 << 10

// Output runs the command and answers its standard output. An *ExitError then carries the end of its standard error
// output, if that goes nowhere else.
func (c *Command) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	tail := &tailWriter{limit: maxStderr}
	collected := c.Stderr == nil
	if collected {
		c.Stderr = tail
	}
	err := c.Run()
	var exit *ExitError
	if collected && errors.As(err, &exit) {
		exit.Stderr = tail.kept
	}
	return out.Bytes(), err
}

// CombinedOutput runs the command and answers its output and error output, in the order in which they came.
func (c *Command) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// tailWriter keeps the end of what is written to it.
type tailWriter struct {
	limit int
	kept  []byte
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.kept = append(w.kept, p...)
	if over := len(w.kept) - w.limit; over > 0 {
		w.kept = append(w.kept[:0], w.kept[over:]...)
	}
	return len(p), nil
}

// killPatience bounds how long a killed command may take to be seen dead.
const killPatience = 5 * time.Second

// Start starts the command and answers when it runs. A command that does not exist, or cannot be run, is an error here:
// see ErrCommandNotFound and ErrNotExecutable.
func (c *Command) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stream != nil:
		return errors.New("client: the command was started already")
	case c.Name == "":
		return spore.Invalidf("cmd", "no command is given")
	}
	if err := c.ctx.Err(); err != nil {
		return canceled(err)
	}
	stdin := c.Stdin != nil || c.TTY != nil
	req := connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: c.Name, Args: c.Args, Envs: c.Env},
		Stdin:   &stdin,
	})
	if c.Dir != "" {
		req.Msg.Process.Cwd = &c.Dir
	}
	if c.TTY != nil {
		req.Msg.Pty = ptySize(*c.TTY)
	}
	setUser(req.Header(), c.User)
	// The stream outlives ctx a little, so that the end of a killed command is still seen. Until the command is known to
	// run there is nothing to kill, and ctx ends the stream at once.
	streamCtx, cut := context.WithCancel(context.WithoutCancel(c.ctx))
	stopEarly := context.AfterFunc(c.ctx, cut)
	stream, err := c.sandbox.proc.Start(streamCtx, req)
	if err == nil {
		err = c.awaitStart(stream)
	}
	if !stopEarly() && err == nil {
		err = c.ctx.Err()
	}
	if err != nil {
		pid := c.pid
		cut()
		if ctxErr := c.ctx.Err(); ctxErr != nil {
			if pid != 0 {
				c.kill()
			}
			return canceled(ctxErr)
		}
		return startError(c.Name, err)
	}
	c.stream = stream
	stopKill := context.AfterFunc(c.ctx, func() {
		time.AfterFunc(killPatience, cut)
		if c.kill() != nil {
			cut()
		}
	})
	c.ended = make(chan struct{})
	go func() {
		defer close(c.ended)
		c.err = c.receive(stream)
		stopKill()
		cut()
	}()
	if c.Stdin != nil {
		go c.feed(streamCtx)
	}
	return nil
}

// awaitStart reads the first event, which names the process.
func (c *Command) awaitStart(stream *connect.ServerStreamForClient[process.StartResponse]) error {
	for stream.Receive() {
		if start := stream.Msg().GetEvent().GetStart(); start != nil {
			c.pid = start.GetPid()
			return nil
		}
	}
	err := stream.Err()
	if closeErr := stream.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = spore.Errorf(spore.CodeUnreachable, "the agent ended the stream before the command began")
	}
	return err
}

func startError(name string, err error) error {
	mapped := agentError(err)
	var remote *connect.Error
	var e *spore.Error
	if !errors.As(mapped, &e) || !errors.As(mapped, &remote) {
		return mapped
	}
	switch remote.Code() {
	case connect.CodeNotFound:
		e.Cause = ErrCommandNotFound
	case connect.CodePermissionDenied:
		e.Cause = ErrNotExecutable
	}
	return e
}

// PID is the command's process id in the sandbox, 0 before it was started.
func (c *Command) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.pid)
}

// Wait waits for the end of a command that was started, and of its output. It answers nil for exit code 0 and *ExitError
// for others.
func (c *Command) Wait() error {
	c.mu.Lock()
	ended, waited := c.ended, c.waited
	c.waited = true
	c.mu.Unlock()
	if ended == nil || waited {
		return errors.New("client: the command was not started, or was waited for already")
	}
	<-ended
	return c.err
}

// receive copies the output until the command ends, and says how it did.
func (c *Command) receive(stream *connect.ServerStreamForClient[process.StartResponse]) error {
	var copyErr error
	for stream.Receive() {
		event := stream.Msg().GetEvent()
		if end := event.GetEnd(); end != nil {
			stream.Close() // the command has ended, whatever becomes of the connection
			return c.result(end, copyErr)
		}
		if copyErr == nil {
			if copyErr = c.deliver(event.GetData()); copyErr != nil {
				if err := c.kill(); err != nil {
					return errors.Join(copyErr, err, stream.Close())
				}
			}
		}
	}
	err := stream.Err()
	if ctxErr := c.ctx.Err(); ctxErr != nil {
		return canceled(ctxErr)
	}
	if copyErr != nil {
		return copyErr
	}
	if err != nil {
		err = agentError(err)
		if spore.CodeOf(err) != spore.CodeUnreachable {
			return err
		}
	}
	return spore.Errorf(spore.CodeUnreachable, "the connection to the sandbox broke while the command ran").WithCause(err).
		WithHint("the command may still run, as process %d", c.pid)
}

func (c *Command) deliver(data *process.ProcessEvent_DataEvent) error {
	to, p := c.Stdout, data.GetStdout()
	if data.GetStderr() != nil {
		to, p = c.Stderr, data.GetStderr()
	} else if data.GetPty() != nil {
		p = data.GetPty()
	}
	if to == nil || len(p) == 0 {
		return nil
	}
	_, err := to.Write(p)
	return err
}

func (c *Command) result(end *process.ProcessEvent_EndEvent, copyErr error) error {
	if err := c.ctx.Err(); err != nil && !end.GetExited() {
		return canceled(err)
	}
	if copyErr != nil {
		return copyErr
	}
	if end.GetExited() && end.GetExitCode() == 0 {
		return nil
	}
	return &ExitError{Code: int(end.GetExitCode()), Signaled: !end.GetExited(), Status: end.GetStatus()}
}

const endOfFile = 0x04 // what a terminal takes for the end of input

// feed sends Stdin to the command, in order, each piece when the one before has arrived.
func (c *Command) feed(ctx context.Context) {
	in := readInput(c.Stdin)
	defer in.stop()
	for {
		p, err := in.next()
		if err == nil {
			if c.send(ctx, p) != nil {
				return // it has ended, or takes no more input; Wait tells
			}
			continue
		}
		// As above, a failure means that the command is beyond input.
		if c.TTY != nil {
			c.send(ctx, []byte{endOfFile})
		} else {
			c.sandbox.proc.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: c.selector()}))
		}
		return
	}
}

func (c *Command) send(ctx context.Context, p []byte) error {
	in := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: p}}
	if c.TTY != nil {
		in.Input = &process.ProcessInput_Pty{Pty: p}
	}
	_, err := c.sandbox.proc.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: c.selector(), Input: in}))
	return err
}

func (c *Command) selector() *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: c.pid}}
}

func ptySize(t TTY) *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(t.Cols), Rows: uint32(t.Rows)}}
}

// Signal sends a signal to the command's process group. A command that has ended is spore.CodeNotFound.
func (c *Command) Signal(ctx context.Context, sig syscall.Signal) error {
	if c.PID() == 0 {
		return errors.New("client: the command was not started")
	}
	_, err := c.sandbox.proc.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{Process: c.selector(), Signal: process.Signal(sig)}))
	return agentError(err)
}

// kill ends the command, whether or not its context has ended.
func (c *Command) kill() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), killPatience)
	defer cancel()
	_, err := c.sandbox.proc.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{Process: c.selector(), Signal: process.Signal_SIGNAL_SIGKILL}))
	return agentError(err)
}

// Resize tells the command that its terminal has another size now.
func (c *Command) Resize(ctx context.Context, size TTY) error {
	if c.PID() == 0 {
		return errors.New("client: the command was not started")
	}
	_, err := c.sandbox.proc.Update(ctx, connect.NewRequest(&process.UpdateRequest{Process: c.selector(), Pty: ptySize(size)}))
	return agentError(err)
}

// Process is a command that runs in a sandbox.
type Process struct {
	PID  int
	Tag  string
	Name string
	Args []string
	Dir  string
}

// Processes lists the commands that were started in the sandbox and still run.
func (s *Sandbox) Processes(ctx context.Context) ([]Process, error) {
	resp, err := s.proc.List(ctx, connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		return nil, agentError(err)
	}
	out := make([]Process, 0, len(resp.Msg.GetProcesses()))
	for _, p := range resp.Msg.GetProcesses() {
		out = append(out, Process{PID: int(p.GetPid()), Tag: p.GetTag(), Name: p.GetConfig().GetCmd(), Args: p.GetConfig().GetArgs(), Dir: p.GetConfig().GetCwd()})
	}
	return out, nil
}
