package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// Process is a command that was started, until a while after its end.
type Process struct {
	prepared
	child   *Child
	out     *hub
	limit   atomic.Pointer[time.Timer] // kills the process; nil without a time limit
	expired atomic.Int64               // the time limit that killed it, in nanoseconds

	inMu   sync.Mutex
	in     *os.File // standard input or the terminal; nil when closed
	tty    *os.File // the terminal
	ended  chan struct{}
	status syscall.WaitStatus // after ended
}

// start starts a prepared command. The reader that it returns misses nothing.
func (r *Reaper) start(p prepared) (*Process, *reader, error) {
	proc := &Process{prepared: p, out: newHub(), ended: make(chan struct{})}
	s, err := openStdio(p)
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	defer s.closeChild()
	attr := &syscall.ProcAttr{
		Dir:   p.dir,
		Env:   p.environ,
		Files: []uintptr{uintptr(s.child[0]), uintptr(s.child[1]), uintptr(s.child[2])},
		// A session of its own: a signal to the group reaches what the command has started, and nothing else.
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: p.pty != nil},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: p.as.UID, Gid: p.as.GID, Groups: p.as.Groups}
	}
	proc.child, err = r.Start(p.path, append([]string{p.cmd}, p.args...), attr)
	if err != nil {
		s.closeParent()
		if errors.Is(err, fs.ErrNotExist) { // the file itself has been seen
			return nil, nil, notRunnable("%s: the interpreter or dynamic loader that it names is not in the sandbox", p.cmd)
		}
		return nil, nil, commandError(p.cmd, err)
	}
	proc.in, proc.tty = s.in, s.tty
	rd := proc.out.join()
	go proc.attend(s.in, s.out)
	return proc, rd, nil
}

// past is a deadline that ends what is under way.
var past = time.Unix(1, 0)

// stdio is the plumbing of one process. Descriptors of the child are bare numbers, so that Go leaves them in blocking
// mode.
type stdio struct {
	child [3]int
	in    *os.File
	tty   *os.File
	out   []output
}

type output struct {
	from channel
	file *os.File
}

func openStdio(p prepared) (s *stdio, err error) {
	s = &stdio{child: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			s.closeChild()
			s.closeParent()
		}
	}()
	if p.pty != nil {
		return s, s.openTerminal(p)
	}
	if p.stdin {
		if s.in, s.child[0], err = pipe(p.as, true); err != nil {
			return s, err
		}
	} else if s.child[0], err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return s, err
	}
	for i, from := range []channel{stdout, stderr} {
		f, fd, err := pipe(p.as, false)
		if err != nil {
			return s, err
		}
		s.child[1+i] = fd
		s.out = append(s.out, output{from, f})
	}
	return s, nil
}

func (s *stdio) openTerminal(p prepared) error {
	master, slave, err := pty.Open()
	if err != nil {
		return fmt.Errorf("no terminal: %w", err)
	}
	defer slave.Close()
	// Opened blocking; reads must end at a deadline.
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	master.Close()
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	s.tty = os.NewFile(uintptr(fd), "terminal")
	s.in = s.tty
	s.out = []output{{terminal, s.tty}}
	if err := resize(s.tty, *p.pty); err != nil {
		return err
	}
	if err := own(int(slave.Fd()), p.as); err != nil {
		return err
	}
	for i := range s.child {
		if s.child[i], err = unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return err
		}
	}
	return nil
}

// pipe makes a pipe whose far end is a bare descriptor for the child; the near end is the writing one if write is set.
func pipe(as User, write bool) (*os.File, int, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	near, far := fds[0], fds[1]
	if write {
		near, far = far, near
	}
	err := own(far, as)
	if err == nil {
		err = unix.SetNonblock(near, true)
	}
	if err != nil {
		unix.Close(near)
		unix.Close(far)
		return nil, -1, err
	}
	return os.NewFile(uintptr(near), "pipe"), far, nil
}

// own gives a descriptor's file to the user, so that /dev/stdout and its like can be opened.
func own(fd int, as User) error {
	if os.Geteuid() != 0 || as.UID == 0 {
		return nil
	}
	return unix.Fchown(fd, int(as.UID), -1)
}

func (s *stdio) closeChild() {
	for _, fd := range s.child {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	s.child = [3]int{-1, -1, -1}
}

func (s *stdio) closeParent() {
	if s.in != nil {
		s.in.Close()
	}
	for _, o := range s.out {
		o.file.Close() // once more for a terminal, which is harmless
	}
}

// attend follows the process to its end.
func (p *Process) attend(in *os.File, outs []output) {
	var pumps sync.WaitGroup
	pumps.Add(len(outs))
	for _, o := range outs {
		go p.pump(o, pumps.Done)
	}
	<-p.child.Done()
	if t := p.limit.Load(); t != nil {
		t.Stop()
	}
	for _, o := range outs {
		o.file.SetReadDeadline(past) // fails when the pump has closed it, which is as good
	}
	in.SetWriteDeadline(past) // a descendant may have the other end and not read it: who writes must not hold us up
	pumps.Wait()
	p.inMu.Lock()
	if p.in != nil && p.in != p.tty {
		p.in.Close()
	}
	p.in = nil
	p.inMu.Unlock()
	p.status = p.child.Status()
	close(p.ended)
	p.out.end()
}

// pump publishes output until its end, or until all that was written before the process ended has been read. What
// descendants still write is then read and dropped: a full or closed pipe would stop or kill them.
func (p *Process) pump(o output, done func()) {
	defer o.file.Close()
	err := p.copyOutput(o)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		done()
		return
	}
	o.file.SetReadDeadline(time.Time{})
	p.copyRest(o)
	done()
	io.Copy(io.Discard, o.file)
}

const readSize = 32 << 10

func (p *Process) copyOutput(o output) error {
	buf := make([]byte, readSize)
	for {
		n, err := o.file.Read(buf)
		if n > 0 {
			p.emit(o.from, buf[:n])
		}
		if err != nil {
			return err
		}
	}
}

// copyRest reads what is in the pipe right now, at most as much as a pipe holds.
func (p *Process) copyRest(o output) {
	conn, err := o.file.SyscallConn()
	if err != nil {
		return // closed: nothing is left
	}
	capacity := 64 << 10
	if p.tty == nil {
		if size, err := fcntlPipeSize(conn); err == nil {
			capacity = size
		}
	}
	buf := make([]byte, readSize)
	for capacity > 0 {
		var n int
		conn.Read(func(fd uintptr) bool {
			for {
				n, err = unix.Read(int(fd), buf)
				if err != unix.EINTR {
					return true
				}
			}
		})
		if err != nil || n <= 0 {
			return
		}
		capacity -= n
		p.emit(o.from, buf[:n])
	}
}

func fcntlPipeSize(conn syscall.RawConn) (size int, err error) {
	if cerr := conn.Control(func(fd uintptr) { size, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) }); cerr != nil {
		return 0, cerr
	}
	return size, err
}

func (p *Process) emit(from channel, data []byte) {
	if p.sink != nil {
		p.sink(data)
	}
	p.out.publish(from, data)
}

// killAfter kills the process group when the process still runs after d.
func (p *Process) killAfter(d time.Duration) {
	p.limit.Store(time.AfterFunc(d, func() {
		p.expired.Store(int64(d))
		p.child.Signal(syscall.SIGKILL) // fails only when it has just ended
	}))
	select {
	case <-p.ended:
		p.limit.Load().Stop()
	default:
	}
}

var errNoInput = errors.New("the standard input of the process is closed")

// write writes all of data to the process, or fails when ctx ends first.
func (p *Process) write(ctx context.Context, data []byte) error {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	if p.in == nil {
		return errNoInput
	}
	in := p.in
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		in.SetWriteDeadline(past) // fails when the process is gone, and then so does the write
	})
	_, err := in.Write(data)
	if !stop() {
		<-cut
		in.SetWriteDeadline(time.Time{})
		select {
		case <-p.child.Done(): // and attend may have set its deadline just before
			in.SetWriteDeadline(past)
		default:
		}
		if err != nil {
			return context.Cause(ctx)
		}
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EIO) || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return errNoInput
	}
	return err
}

// closeStdin ends the standard input. A process that does not read what was written before may hold it up only as long
// as the writer's own context lasts.
func (p *Process) closeStdin() error {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	if p.in == nil {
		return errNoInput
	}
	err := p.in.Close()
	p.in = nil
	return err
}

func resize(tty *os.File, size ptySize) error {
	conn, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var ioErr error
	err = conn.Control(func(fd uintptr) {
		ioErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.rows, Col: size.cols})
	})
	return errors.Join(err, ioErr)
}

// exit describes the end of a process: the code as a shell would give it, and words.
func exit(status syscall.WaitStatus) (code int, exited bool, words string) {
	if status.Signaled() {
		words = "signal: " + status.Signal().String()
		if status.CoreDump() {
			words += " (core dumped)"
		}
		return 128 + int(status.Signal()), false, words
	}
	return status.ExitStatus(), true, fmt.Sprintf("exit status %d", status.ExitStatus())
}
