package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/process"
)

// processService is the process service of the wire.
type processService struct{ agent *Agent }

func (s processService) List(context.Context, *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	res := &process.ListResponse{}
	for _, p := range s.agent.processes.running() {
		info := &process.ProcessInfo{
			Config: &process.ProcessConfig{Cmd: p.cmd, Args: p.args, Envs: p.env},
			Pid:    uint32(p.child.Pid),
		}
		info.Config.Cwd = &p.dir
		if p.tag != "" {
			info.Tag = &p.tag
		}
		res.Processes = append(res.Processes, info)
	}
	return connect.NewResponse(res), nil
}

func (s processService) Start(ctx context.Context, req *connect.Request[process.StartRequest], stream *connect.ServerStream[process.StartResponse]) error {
	m := req.Msg
	c := command{
		cmd: m.GetProcess().GetCmd(), args: m.GetProcess().GetArgs(), env: m.GetProcess().GetEnvs(), cwd: m.GetProcess().GetCwd(),
		user: requestUser(req.Header()), tag: m.GetTag(), stdin: m.Stdin == nil || m.GetStdin(),
	}
	if m.Pty != nil {
		size, err := sizeOf(m.GetPty().GetSize())
		if err != nil {
			return err
		}
		c.pty = &size
	}
	interval, err := keepaliveInterval(req.Header())
	if err != nil {
		return err
	}
	p, rd, err := s.agent.run(c)
	if err != nil {
		return err
	}
	defer rd.leave()
	if deadline, ok := ctx.Deadline(); ok {
		p.killAfter(time.Until(deadline))
	}
	return follow(ctx, p, rd, interval, func(e *process.ProcessEvent) error {
		return stream.Send(&process.StartResponse{Event: e})
	})
}

func (s processService) Connect(ctx context.Context, req *connect.Request[process.ConnectRequest], stream *connect.ServerStream[process.ConnectResponse]) error {
	p, err := s.selectProcess(req.Msg.GetProcess(), false)
	if err != nil {
		return err
	}
	interval, err := keepaliveInterval(req.Header())
	if err != nil {
		return err
	}
	rd := p.out.join()
	defer rd.leave()
	return follow(ctx, p, rd, interval, func(e *process.ProcessEvent) error {
		return stream.Send(&process.ConnectResponse{Event: e})
	})
}

// follow sends the life of a process, from start to end. The process does not notice when it returns.
func follow(ctx context.Context, p *Process, rd *reader, interval time.Duration, send func(*process.ProcessEvent) error) error {
	err := send(&process.ProcessEvent{Event: &process.ProcessEvent_Start{
		Start: &process.ProcessEvent_StartEvent{Pid: uint32(p.child.Pid)},
	}})
	if err != nil {
		return err
	}
	idle := time.NewTimer(interval)
	defer idle.Stop()
	for {
		c, state := rd.read()
		var event *process.ProcessEvent
		switch state {
		case readChunk:
			event = dataEvent(c)
		case readEnd:
			return send(endEvent(p))
		case readCut:
			return connect.NewError(connect.CodeResourceExhausted, errors.New("this reader fell so far behind the others that output was lost; connect again"))
		case readNothing:
			select {
			case <-rd.wake:
				continue
			case <-idle.C:
				event = &process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}}
			case <-ctx.Done():
				if errors.Is(ctx.Err(), context.DeadlineExceeded) {
					return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the time limit of the command has passed"))
				}
				return ctx.Err()
			}
		}
		if err := send(event); err != nil {
			return err
		}
		idle.Reset(interval)
	}
}

func dataEvent(c chunk) *process.ProcessEvent {
	data := &process.ProcessEvent_DataEvent{}
	switch c.from {
	case stdout:
		data.Output = &process.ProcessEvent_DataEvent_Stdout{Stdout: c.data}
	case stderr:
		data.Output = &process.ProcessEvent_DataEvent_Stderr{Stderr: c.data}
	case terminal:
		data.Output = &process.ProcessEvent_DataEvent_Pty{Pty: c.data}
	}
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: data}}
}

func endEvent(p *Process) *process.ProcessEvent {
	code, exited, words := exit(p.status)
	end := &process.ProcessEvent_EndEvent{ExitCode: int32(code), Exited: exited, Status: words}
	if d := p.expired.Load(); d != 0 && !exited {
		text := fmt.Sprintf("killed: it ran longer than its time limit of %s", time.Duration(d).Round(time.Millisecond))
		end.Error = &text
	} else if !exited {
		end.Error = &words
	}
	return &process.ProcessEvent{Event: &process.ProcessEvent_End{End: end}}
}

const defaultKeepalive = 90 * time.Second

// keepaliveInterval is how long a stream may be silent.
func keepaliveInterval(h http.Header) (time.Duration, error) {
	v := h.Get("Keepalive-Ping-Interval")
	if v == "" {
		return defaultKeepalive, nil
	}
	seconds, err := strconv.ParseUint(v, 10, 31)
	if err != nil || seconds == 0 {
		return 0, invalidf("Keepalive-Ping-Interval: %q is not a number of seconds", v)
	}
	return time.Duration(seconds) * time.Second, nil
}

func sizeOf(s *process.PTY_Size) (ptySize, error) {
	if s.GetCols() > math.MaxUint16 || s.GetRows() > math.MaxUint16 {
		return ptySize{}, invalidf("pty.size: at most %d columns and rows", math.MaxUint16)
	}
	return ptySize{cols: uint16(s.GetCols()), rows: uint16(s.GetRows())}, nil
}

// selectProcess finds a process; with running set, one that has not ended.
func (s processService) selectProcess(sel *process.ProcessSelector, running bool) (*Process, error) {
	var p *Process
	var name string
	switch by := sel.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		name = fmt.Sprintf("pid %d", by.Pid)
		p = s.agent.processes.find(func(p *Process) bool { return p.child.Pid == int(by.Pid) })
	case *process.ProcessSelector_Tag:
		name = fmt.Sprintf("tag %q", by.Tag)
		p = s.agent.processes.find(func(p *Process) bool { return p.tag == by.Tag && by.Tag != "" })
	default:
		return nil, invalidf("process: name it by pid or tag")
	}
	if p == nil || running && !p.running() {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no running process with %s was started here", name))
	}
	return p, nil
}

func (s processService) Update(_ context.Context, req *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	p, err := s.selectProcess(req.Msg.GetProcess(), true)
	if err != nil {
		return nil, err
	}
	if req.Msg.Pty != nil {
		if p.tty == nil {
			return nil, failedPrecondition(errors.New("the process has no terminal"))
		}
		size, err := sizeOf(req.Msg.GetPty().GetSize())
		if err != nil {
			return nil, err
		}
		if err := resize(p.tty, size); err != nil {
			return nil, failedPrecondition(err)
		}
	}
	return connect.NewResponse(&process.UpdateResponse{}), nil
}

func (s processService) SendInput(ctx context.Context, req *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	p, err := s.selectProcess(req.Msg.GetProcess(), true)
	if err != nil {
		return nil, err
	}
	if err := input(ctx, p, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendInputResponse{}), nil
}

func (s processService) StreamInput(ctx context.Context, stream *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	var p *Process
	for stream.Receive() {
		switch m := stream.Msg().GetEvent().(type) {
		case *process.StreamInputRequest_Start:
			var err error
			if p, err = s.selectProcess(m.Start.GetProcess(), true); err != nil {
				return nil, err
			}
		case *process.StreamInputRequest_Data:
			if p == nil {
				return nil, invalidf("the first message must name the process")
			}
			if err := input(ctx, p, m.Data.GetInput()); err != nil {
				return nil, err
			}
		case *process.StreamInputRequest_Keepalive:
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.StreamInputResponse{}), nil
}

func input(ctx context.Context, p *Process, in *process.ProcessInput) error {
	var data []byte
	switch in := in.GetInput().(type) {
	case *process.ProcessInput_Stdin:
		if p.tty != nil {
			return failedPrecondition(errors.New("the process runs on a terminal: send pty input"))
		}
		data = in.Stdin
	case *process.ProcessInput_Pty:
		if p.tty == nil {
			return failedPrecondition(errors.New("the process has no terminal: send stdin input"))
		}
		data = in.Pty
	default:
		return invalidf("input: give stdin or pty")
	}
	err := p.write(ctx, data)
	switch {
	case errors.Is(err, errNoInput):
		return failedPrecondition(err)
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return connect.NewError(connect.CodeInternal, err)
	}
	return nil
}

func (s processService) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	sig := syscall.Signal(req.Msg.GetSignal())
	if sig <= 0 || sig > 64 {
		return nil, invalidf("signal: %d is not a signal", req.Msg.GetSignal())
	}
	p, err := s.selectProcess(req.Msg.GetProcess(), true)
	if err != nil {
		return nil, err
	}
	if err := p.child.Signal(sig); err != nil {
		return nil, connect.NewError(connect.CodeNotFound, err)
	}
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

func (s processService) CloseStdin(_ context.Context, req *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	p, err := s.selectProcess(req.Msg.GetProcess(), true)
	if err != nil {
		return nil, err
	}
	if p.tty != nil {
		return nil, failedPrecondition(errors.New("the process runs on a terminal: send it an end-of-file character instead"))
	}
	if err := p.closeStdin(); err != nil && !errors.Is(err, errNoInput) {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}

func failedPrecondition(err error) error {
	return connect.NewError(connect.CodeFailedPrecondition, err)
}
