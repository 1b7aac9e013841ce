package guest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/api/process"
	"github.com/sporevm/spore/api/process/processconnect"
)

// rpc are the agent's services as Go clients.
type rpc struct {
	process processconnect.ProcessClient
}

func newRPC(a *Agent) rpc {
	client := &http.Client{Transport: a.transport}
	return rpc{process: processconnect.NewProcessClient(client, "http://agent")}
}

// Command is a command to run in a sandbox, as the image's user, in its working directory and environment unless it
// says otherwise.
type Command struct {
	Path  string // a path, or a name to look up in PATH
	Args  []string
	Env   map[string]string
	Dir   string
	User  string
	Stdin []byte
}

// Result is what has become of a Command.
type Result struct {
	ExitCode int
	Status   string // the end in words
	Stdout   []byte
	Stderr   []byte
	// Truncated says that there was more output than was kept.
	Truncated bool
}

// maxOutput bounds each of Stdout and Stderr of a Result.
const maxOutput = 1 << 20

// Run runs a command to its end. A deadline of ctx kills the command, and Run fails with spore.CodeCanceled. An exit code
// other than 0 is not an error.
func (a *Agent) Run(ctx context.Context, c Command) (Result, error) {
	res, err := a.run(ctx, c)
	if err != nil && ctx.Err() != nil { // whatever the torn connection said first
		err = spore.Errorf(spore.CodeCanceled, "%s was ended: %w", c.Path, context.Cause(ctx))
	}
	return res, err
}

func (a *Agent) run(ctx context.Context, c Command) (Result, error) {
	start := &process.StartRequest{Process: &process.ProcessConfig{Cmd: c.Path, Args: c.Args, Envs: c.Env}}
	if c.Dir != "" {
		start.Process.Cwd = &c.Dir
	}
	stdin := len(c.Stdin) > 0
	start.Stdin = &stdin
	req := connect.NewRequest(start)
	if c.User != "" {
		req.Header().Set("Authorization", basicUser(c.User))
	}
	stream, err := a.rpc.process.Start(ctx, req)
	if err != nil {
		return Result{}, typed(err)
	}
	defer stream.Close()
	var res Result
	var out, errs bytes.Buffer
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			if stdin {
				go a.feed(ctx, e.Start.GetPid(), c.Stdin)
			}
		case *process.ProcessEvent_Data:
			keep(&out, e.Data.GetStdout(), &res)
			keep(&errs, e.Data.GetStderr(), &res)
		case *process.ProcessEvent_End:
			res.ExitCode, res.Status = int(e.End.GetExitCode()), e.End.GetStatus()
			res.Stdout, res.Stderr = out.Bytes(), errs.Bytes()
			return res, nil
		}
	}
	if err := stream.Err(); err != nil {
		return Result{}, typed(err)
	}
	return Result{}, unreachable(errors.New("the command's stream ended before the command did"))
}

// basicUser is how a request of the services names its user.
func basicUser(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"))
}

// feed writes the standard input. A command that ends without reading all of it is none of our business, as in a pipe.
func (a *Agent) feed(ctx context.Context, pid uint32, data []byte) {
	sel := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
	_, err := a.rpc.process.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{
		Process: sel, Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: data}},
	}))
	if err == nil {
		a.rpc.process.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: sel}))
	}
}

func keep(buf *bytes.Buffer, data []byte, res *Result) {
	if room := maxOutput - buf.Len(); len(data) > room {
		data, res.Truncated = data[:room], true
	}
	buf.Write(data)
}

// typed turns an error of the agent's services into a *spore.Error.
func typed(err error) error {
	var already *spore.Error
	if errors.As(err, &already) {
		return already
	}
	var c *connect.Error
	if !errors.As(err, &c) {
		return unreachable(err)
	}
	code := spore.CodeInternal
	switch c.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		code = spore.CodeInvalid
	case connect.CodeNotFound:
		code = spore.CodeNotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeAborted:
		code = spore.CodeConflict
	case connect.CodePermissionDenied:
		code = spore.CodeInvalid
	case connect.CodeResourceExhausted:
		code = spore.CodeBusy
	case connect.CodeCanceled, connect.CodeDeadlineExceeded:
		code = spore.CodeCanceled
	case connect.CodeUnavailable, connect.CodeUnknown:
		code = spore.CodeUnreachable
	}
	return spore.Errorf(code, "%s", c.Message()).WithCause(err)
}
