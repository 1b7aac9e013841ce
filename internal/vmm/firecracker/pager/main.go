package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Descriptors that a pager is born with. The files that its setup speaks of follow.
const (
	fdControl = 3 + iota // one end of a socket pair; the server has the other
	fdVMM                // bound socket for the VMM
	fdServers            // bound socket for later servers
	fdFiles
)

// maxLog bounds the pager's log, in bytes.
const maxLog = 1 << 20

// nobody is the user that a pager of root becomes.
const nobody = 65534

// Main is the pager. It is entered by a hidden subcommand, in a process that Start made, and answers the exit code. open is
// what puts layers over a base file; nil when there is nothing that can.
func Main(args []string, open OpenLayers) int {
	if len(args) == 2 && args[0] == probeArg {
		return probeMain(args[1])
	}
	log := newLogger()
	if err := run(log, open); err != nil {
		log.Error("the pager failed", "error", err)
		return 1
	}
	return 0
}

func run(log *slog.Logger, open OpenLayers) error {
	// What ends the server must not end the VM; without its pager it would.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	parent, err := socketFile(fdControl, "control")
	if err != nil {
		return fmt.Errorf("this command is not for people; the server starts it: %w", err)
	}
	control, err := net.FileConn(parent)
	if err != nil {
		return fmt.Errorf("control connection: %w", err)
	}
	if err := parent.Close(); err != nil {
		return err
	}
	in := newLines(control)
	var o order
	if err := in.next(&o); err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	if o.Op != opStart || o.Setup == nil {
		return errors.New("setup: it did not come first")
	}
	p := &process{log: log.With("vm", o.Setup.ID), setup: o.Setup}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.hub = newHub(p.log, cancel)
	if err := p.prepare(open); err != nil {
		p.hub.now = report{Kind: reportState, State: stateFailed, Failure: newFailure(err)}
		p.hub.send(control, p.hub.now)
		return err
	}
	go p.hub.talk(control, in)
	go p.hub.listen(p.servers)
	err = p.run(ctx)
	if ctx.Err() != nil {
		return nil // ordered
	}
	return err
}

// process is what a pager is made of.
type process struct {
	log          *slog.Logger
	setup        *setup
	hub          *hub
	vmm, servers *net.UnixListener
	src          Source
	hot          *HotSet
	hotErr       error
	space        *space
}

// prepare takes over what the process was born with and gives up all privileges.
func (p *process) prepare(open OpenLayers) (err error) {
	if err := p.setup.check(); err != nil {
		return err
	}
	if p.vmm, err = listener(fdVMM, "vmm"); err != nil {
		return err
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	// After the change of user, since those who connect are told the user and process that listens.
	if p.servers, err = listener(fdServers, "servers"); err != nil {
		return err
	}
	return p.openFiles(open)
}

func (p *process) openFiles(open OpenLayers) (err error) {
	fd := fdFiles
	next := func(name string) *os.File {
		unix.CloseOnExec(fd)
		fd++
		return os.NewFile(uintptr(fd-1), name)
	}
	if p.src, err = OpenFile(next(p.setup.Base), p.setup.Base, p.setup.Size); err != nil {
		return err
	}
	var layers []*os.File
	for _, name := range p.setup.Names {
		layers = append(layers, next(name))
	}
	switch p.setup.Kind {
	case kindSpool:
		p.src, err = openSpool(p.src, layers[0], p.setup.Names[0])
	case kindLayers:
		if open == nil {
			return spore.Errorf(spore.CodeUnsupported, "this program cannot read memory layers")
		}
		p.src, err = open(p.src, p.setup.Names, layers)
	}
	if err != nil {
		return err
	}
	if p.setup.HotSet {
		// A guest thaws without it as well, only slower.
		f := next("hot set")
		p.hot, p.hotErr = readHotSet(f)
		if p.hotErr == nil && p.hot.Size != p.setup.Size {
			p.hotErr = fmt.Errorf("it is of %d bytes of memory, not %d", p.hot.Size, p.setup.Size)
		}
		if p.hotErr != nil {
			p.log.Warn("the hot set is not used", "error", p.hotErr)
			p.hot = nil
		}
		return f.Close()
	}
	return nil
}

// run serves the VMM that connects, and returns when it has ended or ctx does.
func (p *process) run(ctx context.Context) error {
	conn, err := p.accept(ctx)
	if err != nil {
		p.fail(ctx, 0, err)
		return err
	}
	// The connection stays open, so that the VMM, should it read, does not see an end.
	defer conn.Close()
	who, err := peerOf(conn)
	if err != nil {
		p.fail(ctx, 0, err)
		return err
	}
	pidfd, ended, err := watchProcess(who.pidfd)
	if err != nil {
		p.fail(ctx, who.pid, err)
		return err
	}
	defer pidfd.Close()
	if err := p.serve(ctx, conn, who.pid, ended); err != nil && ctx.Err() == nil {
		p.fail(ctx, who.pid, err)
		// Until somebody ends the VMM. A server that comes later must learn what happened.
		select {
		case <-ended:
		case <-ctx.Done():
		}
		runtime.KeepAlive(p)
		return err
	}
	p.hub.tell(report{Kind: reportState, State: stateEnded, VMM: who.pid})
	return nil
}

// fail says that nothing is served any more, unless that is what was ordered.
func (p *process) fail(ctx context.Context, vmm int, err error) {
	if ctx.Err() != nil {
		return
	}
	p.log.Error("nothing is served any more", "error", err)
	p.hub.tell(report{Kind: reportState, State: stateFailed, VMM: vmm, Failure: newFailure(err)})
}

// accept waits for the VMM. Connections of others are ended.
func (p *process) accept(ctx context.Context) (*net.UnixConn, error) {
	stop := context.AfterFunc(ctx, func() { p.vmm.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := p.vmm.SetDeadline(time.Now().Add(time.Duration(p.setup.Connect) * time.Millisecond)); err != nil {
		return nil, err
	}
	for ctx.Err() == nil {
		conn, err := p.vmm.AcceptUnix()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("pager: accept the VMM: %w", err)
		}
		who, err := peerOf(conn)
		if err == nil {
			err = unix.Close(who.pidfd)
		}
		if err == nil && who.uid == p.setup.UID {
			return conn, p.vmm.Close()
		}
		p.log.Warn("a connection that is not the VMM's", "pid", who.pid, "uid", who.uid, "error", err)
		if err := conn.Close(); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, spore.Errorf(spore.CodeUnreachable, "no VMM connected within %d ms", p.setup.Connect)
}

// serve serves the VMM until it has ended, and then answers nil.
func (p *process) serve(ctx context.Context, conn *net.UnixConn, pid int, ended <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	text, fd, err := receive(conn, time.Now().Add(handshakeTimeout))
	if err != nil {
		if err == io.EOF {
			err = badHandshake("it ended before it began")
		}
		return err
	}
	// From here on the descriptor is open until this process ends, whatever fails. If nobody had it any more, the kernel would
	// give the guest zeros for what it lacks.
	regions, err := parseHandshake(text, p.src.Size())
	if err != nil {
		return err
	}
	count := &counters{}
	space, err := newSpace(fd, regions, p.src.Size(), count)
	if err != nil {
		return err
	}
	p.space = space
	s := &server{src: p.src, space: space, count: count, hot: p.hot, hotErr: p.hotErr, first: make(chan struct{})}
	if p.setup.Record > 0 {
		s.recorder = newRecorder()
		s.onRecord = func() { p.hub.tell(report{Kind: reportRecorded}) }
		go func() {
			select {
			case <-s.first:
				if sleep(ctx, time.Duration(p.setup.Record)*time.Millisecond) == nil {
					s.endRecording()
				}
			case <-ctx.Done():
			}
		}()
	}
	p.hub.serves(s)
	p.hub.tell(report{Kind: reportState, State: stateServing, VMM: pid})
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx) }()
	select {
	case <-ended:
		cancel()
		<-served // what failed last failed because the VMM ended
		return nil
	case err := <-served:
		if errors.Is(err, errGone) {
			<-ended
			return nil
		}
		// Serving fails in many ways when its VMM goes away.
		select {
		case <-ended:
			return nil
		case <-time.After(endGrace):
		}
		return err
	}
}

const (
	handshakeTimeout = 10 * time.Second
	endGrace         = 20 * time.Millisecond // between the end of an address space and that of its process
)

// socketFile takes over a descriptor that the process was born with, which must be a socket.
func socketFile(fd int, name string) (*os.File, error) {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, fmt.Errorf("descriptor %d is not the %s socket: %w", fd, name, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// listener listens on a bound socket that the process was born with.
func listener(fd int, name string) (*net.UnixListener, error) {
	f, err := socketFile(fd, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Listen(fd, 8); err != nil {
		return nil, fmt.Errorf("listen on the %s socket: %w", name, err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on the %s socket: %w", name, err)
	}
	unixListener := l.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false) // its path is not this process's
	return unixListener, nil
}

// dropPrivileges makes the process one that can do nothing but what its descriptors let it. It reads what a VMM sends it.
func dropPrivileges() error {
	if os.Geteuid() == 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("drop groups: %w", err)
		}
		if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
			return fmt.Errorf("drop group: %w", err)
		}
		if err := syscall.Setresuid(nobody, nobody, nobody); err != nil {
			return fmt.Errorf("drop user: %w", err)
		}
	}
	// All that is ever written is a log of some lines.
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: maxLog, Max: maxLog}); err != nil {
		return fmt.Errorf("bound the log: %w", err)
	}
	// Others of the same user cannot look into it, and a core file would hold the guest's secrets.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide the process: %w", err)
	}
	return nil
}
