package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a Firecracker process, our child or one that an earlier server started.
type process struct {
	pid   int
	start uint64      // ticks since boot; tells it from a later process with the same pid
	pidfd *os.File    // readable when the process has ended
	child *os.Process // nil for an adopted one

	done   chan struct{}    // closed when the process has ended
	status *os.ProcessState // how it ended, after done; nil when unknown
}

var errGone = errors.New("firecracker: the process has ended")

// watch follows a process until it ends. No thread waits for it. A child may have ended already.
func watch(pid int, child *os.Process) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, syscall.ESRCH) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("firecracker: watch process %d: %w", pid, err)
	}
	p := &process{pid: pid, child: child, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	if p.start, err = startTime(pid); err != nil && (child == nil || !errors.Is(err, errGone)) {
		return nil, errors.Join(err, p.pidfd.Close())
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("firecracker: watch process %d: %w", pid, err), p.pidfd.Close())
	}
	go func() {
		defer p.pidfd.Close()
		defer close(p.done)
		// The first call finds the descriptor not ready unless the process has ended; the poller calls again. Should
		// polling fail, waiting for the child below still works.
		raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n > 0
		})
		if p.child != nil {
			if state, err := p.child.Wait(); err == nil {
				p.status = state
			}
		}
	}()
	return p, nil
}

// kill ends the process; done tells when it is gone.
func (p *process) kill() error {
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		err2 := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
		err = errors.Join(err, err2)
	}
	select {
	case <-p.done:
		return nil
	default:
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("firecracker: end process %d: %w", p.pid, err)
	}
	return nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// noCore keeps the process from leaving a core file, which would hold the guest's secrets. It is called as the process
// starts; once the jailer has changed its user a server without the capability may no longer do that, and then the
// user's own limit holds.
func (p *process) noCore() error {
	err := unix.Prlimit(p.pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	if err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("firecracker: limit process %d: %w", p.pid, err)
	}
	return nil
}

// startTime reads when a process started, in ticks since boot. A process that has ended but was not waited for yet
// counts as gone.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, errGone
	}
	if err != nil {
		return 0, fmt.Errorf("firecracker: %w", err)
	}
	state, start, err := parseStat(text)
	if err != nil {
		return 0, err
	}
	if state == 'Z' || state == 'X' {
		return start, errGone
	}
	return start, nil
}

// parseStat reads state and start time from /proc/PID/stat. The name in parentheses may hold anything.
func parseStat(text []byte) (state byte, start uint64, err error) {
	i := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[i+1:]))
	if i < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("firecracker: %.80q is not a process status", text)
	}
	if start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return 0, 0, fmt.Errorf("firecracker: process status: %w", err)
	}
	return fields[0][0], start, nil
}

// findProcess looks through all processes for one whose working directory is one of dirs; 0 when there is none. The
// directories belong to one VM alone and nothing but its jailer and Firecracker is ever started in them.
func findProcess(dirs ...string) (int, error) {
	var want []os.FileInfo
	for _, dir := range dirs {
		if fi, err := os.Stat(dir); err == nil {
			want = append(want, fi)
		}
	}
	if len(want) == 0 {
		return 0, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("firecracker: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		got, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			continue // ended meanwhile, or a thread of the kernel
		}
		for _, fi := range want {
			if os.SameFile(fi, got) {
				return pid, nil
			}
		}
	}
	return 0, nil
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("firecracker: %w", err)
	}
	return string(bytes.TrimSpace(text)), nil
}
