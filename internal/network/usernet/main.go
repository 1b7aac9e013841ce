package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// Descriptors that a sidecar is started with, besides its specification on standard input.
const (
	fdFrames  = 3 // a socket that listens, or a packet socket on a TAP device
	fdControl = 4
	fdEvents  = 5 // with a TAP device: tells of it
	fdNetNS   = 6 // with a TAP device: where it is, for those who look into this process's descriptors
)

// memoryGoal is where a sidecar's memory is collected harder.
const memoryGoal = 256 << 20

// Main is a sidecar's whole life; args are what follows Command on the command line. It returns the exit status. Only Start
// starts sidecars.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serve(log); err != nil {
		log.Error("cannot go on", "error", err)
		return 1
	}
	return 0
}

func serve(log *slog.Logger) error {
	control, err := inherited(fdControl)
	if err != nil {
		return err
	}
	spec, err := readSpec(os.Stdin)
	if err != nil {
		return err
	}
	var plug func(context.Context) (cable, error)
	s := &sidecar{log: log}
	if spec.Tap {
		p, err := inheritPackets(fdFrames, fdEvents)
		if err != nil {
			return err
		}
		plug = func(ctx context.Context) (cable, error) { return s.await(ctx, p) }
	} else {
		frames, err := inherited(fdFrames)
		if err != nil {
			return err
		}
		plug = func(ctx context.Context) (cable, error) { return s.accept(ctx, frames) }
	}
	// It moves bytes and does not compute: more threads would only be more to schedule.
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetMemoryLimit(memoryGoal)
	if err := confine(spec.UID); err != nil {
		return err
	}
	if s.engine, err = newEngine(spec, log); err != nil {
		return err
	}
	return s.run(plug, control)
}

func inherited(fd uintptr) (*net.UnixListener, error) {
	f := os.NewFile(fd, "socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("usernet: this is started by the server only: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("usernet: this is started by the server only"), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// readSpec reads a specification, whole: that of a server that ended while it wrote is none.
func readSpec(r io.Reader) (Spec, error) {
	var spec Spec
	text, err := io.ReadAll(io.LimitReader(r, maxMessage+1))
	if err == nil && len(text) > maxMessage {
		err = errors.New("it is too long")
	}
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err != nil {
		return spec, fmt.Errorf("usernet: the specification: %w", err)
	}
	return spec, nil
}

// confine gives up what the sidecar does not need. Its user is no other than the VM's.
func confine(uid int) error {
	for resource, n := range map[int]uint64{
		unix.RLIMIT_CORE:   0, // a core file would hold the guest's secrets
		unix.RLIMIT_NOFILE: maxConnections + maxFlows + maxHandshakes + 256,
	} {
		var old unix.Rlimit
		if err := unix.Getrlimit(resource, &old); err != nil {
			return fmt.Errorf("usernet: limits: %w", err)
		}
		n = min(n, old.Max)
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("usernet: limits: %w", err)
		}
	}
	if uid > 0 && os.Geteuid() == 0 {
		if err := errors.Join(syscall.Setgroups([]int{}), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
			return fmt.Errorf("usernet: become user %d: %w", uid, err)
		}
	}
	// No other process of the same user, such as a VM that has been taken over, may look into this one.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("usernet: %w", err)
	}
	// What cannot be had in a program that is linked with C would be one wall more: it starts no programs anyway.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("usernet: %w", errno)
	}
	return nil
}

// sidecar is an engine with its sockets.
type sidecar struct {
	engine    *engine
	log       *slog.Logger
	connected atomic.Bool
	end       context.CancelFunc
}

// run serves one VM until it leaves. plug waits for it; nil when it did not come.
func (s *sidecar) run(plug func(context.Context) (cable, error), control *net.UnixListener) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.end = cancel
	answered := make(chan error, 1)
	go func() { answered <- serveControl(ctx, control, s.obey) }()
	go s.watchHost(ctx)
	vm, err := plug(ctx)
	if err == nil && vm != nil {
		s.connected.Store(true)
		err = s.engine.run(ctx, vm)
	} else {
		s.engine.close()
	}
	cancel()
	return errors.Join(err, <-answered)
}

// accept waits for the VM to connect, for a while. There is one VM, so whoever comes later finds nothing.
func (s *sidecar) accept(ctx context.Context, l *net.UnixListener) (cable, error) {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	if err := l.SetDeadline(time.Now().Add(connectFor)); err != nil {
		return nil, err
	}
	conn, err := l.Accept()
	switch {
	case err == nil:
		return newStream(conn), nil
	case ctx.Err() != nil:
		return nil, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.log.Info("no VM has connected")
		return nil, nil
	}
	return nil, fmt.Errorf("usernet: %w", err)
}

// await waits for the VM to open its TAP device, for a while.
func (s *sidecar) await(ctx context.Context, p *packets) (cable, error) {
	came, err := p.await(ctx, connectFor)
	if err == nil && came {
		return p, nil
	}
	if err == nil && ctx.Err() == nil {
		s.log.Info("no VM has opened its TAP device")
	}
	return nil, errors.Join(err, p.Close())
}

// watchHost keeps the policy right when the host's addresses change.
func (s *sidecar) watchHost(ctx context.Context) {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.engine.gate.refresh(); err != nil {
				s.log.Error("look at the host's addresses", "error", err)
			}
		}
	}
}

func (s *sidecar) obey(req request) response {
	err := s.change(req)
	if req.End && err == nil {
		s.end()
	}
	stats := s.engine.stats()
	stats.Connected = s.connected.Load()
	return response{Stats: stats, Error: failureOf(err)}
}

func (s *sidecar) change(req request) error {
	if req.Rates != nil {
		if err := req.Rates.validate(); err != nil {
			return err
		}
	}
	if req.Egress != nil {
		if err := s.engine.gate.set(*req.Egress); err != nil {
			if spore.CodeOf(err) == spore.CodeInternal {
				s.log.Error("change the policy", "error", err)
			}
			return err
		}
	}
	if req.Rates != nil {
		s.engine.in.set(req.Rates.In)
		s.engine.out.set(req.Rates.Out)
	}
	return nil
}
