package agent

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reaper starts processes and collects their exit statuses. As PID 1 it also collects orphans, which are everybody's
// and come unannounced; that is why nothing in the guest may wait for a child except through the Reaper.
type Reaper struct {
	init bool

	mu       sync.Mutex // held from fork to registration, so that no child can be reaped before it is known
	children map[int]*Child
	started  chan struct{} // wakes the collector of PID 1 when it has run out of children
}

// Child is a process that a Reaper started.
type Child struct {
	Pid int

	reaper *Reaper
	done   chan struct{}
	status syscall.WaitStatus
}

// NewReaper makes a Reaper. With init set it collects every child of this process, as PID 1 must.
func NewReaper(init bool) *Reaper {
	r := &Reaper{init: init, children: map[int]*Child{}, started: make(chan struct{}, 1)}
	if init {
		go r.collectAll()
	}
	return r
}

// Start starts a process. A failure to execute is returned as the bare errno.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{Pid: pid, reaper: r, done: make(chan struct{})}
	r.children[pid] = c
	if r.init {
		select {
		case r.started <- struct{}{}:
		default:
		}
	} else {
		go r.collectOne(pid)
	}
	return c, nil
}

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status says how the process ended. It may be called after Done.
func (c *Child) Status() syscall.WaitStatus { return c.status }

// Signal signals the process group that the process leads, or the process alone while it leads none. It fails with
// os.ErrProcessDone after the process has ended, and can never hit a later process with the same pid.
func (c *Child) Signal(sig syscall.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.reaper.children[c.Pid] != c {
		return os.ErrProcessDone
	}
	err := syscall.Kill(-c.Pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		err = syscall.Kill(c.Pid, sig)
	}
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// collectAll reaps whatever child of PID 1 ends. Between "some child has ended" and the reaping of it the lock is
// taken: a zombie keeps its pid, so a registered child cannot be confused with a newer one.
func (r *Reaper) collectAll() {
	for {
		pid, err := waitEnded(unix.P_ALL, 0)
		if err != nil { // no children at all
			select {
			case <-r.started:
			case <-time.After(30 * time.Second): // an orphan may have been handed to us without any child of ours
			}
			continue
		}
		r.reap(pid)
	}
}

func (r *Reaper) collectOne(pid int) {
	if _, err := waitEnded(unix.P_PID, pid); err != nil {
		// Somebody else has waited for it. Its status is lost, its end is not.
		r.mu.Lock()
		defer r.mu.Unlock()
		r.finish(pid, syscall.WaitStatus(0))
		return
	}
	r.reap(pid)
}

func (r *Reaper) reap(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err == nil && got == pid {
			r.finish(pid, status)
		}
		return
	}
}

func (r *Reaper) finish(pid int, status syscall.WaitStatus) {
	if c := r.children[pid]; c != nil {
		delete(r.children, pid)
		c.status = status
		close(c.done)
	}
}

// waitEnded blocks until a child has ended and returns its pid without reaping it.
func waitEnded(kind, id int) (int, error) {
	// The layout of siginfo_t for SIGCHLD on 64-bit Linux: three ints, padding, then the pid.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		_                     [108]byte
	}
	for {
		_, _, e := syscall.Syscall6(syscall.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOWAIT, 0, 0)
		switch e {
		case 0:
			return int(info.pid), nil
		case syscall.EINTR:
		default:
			return 0, e
		}
	}
}
