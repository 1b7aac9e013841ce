package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a QEMU process, our child or one that an earlier server started.
type process struct {
	pid   int
	start uint64      // ticks since boot; tells it from a later process with the same pid
	pidfd *os.File    // readable when the process has ended
	child *os.Process // nil for an adopted one

	done   chan struct{} // closed when the process has ended
	status string        // how it ended, after done; "" when unknown
}

// startProcess runs QEMU in dir with its output going to log. It survives this process. The limits are in force before
// it does anything: it waits for the end of its configuration file, which is a pipe. Without that a busy host could let
// QEMU change its user first, and then it is no longer this server's to limit.
func startProcess(path, dir string, args []string, log *os.File, files []*os.File, limits map[int]uint64) (*process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer null.Close()
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer gate.Close()
	defer open.Close()
	passed := append([]*os.File{null, log, log}, files...)
	args = append([]string{filepath.Base(path), "-readconfig", fmt.Sprintf("/proc/self/fd/%d", len(passed))}, args...)
	child, err := os.StartProcess(path, args, &os.ProcAttr{
		Dir:   dir,
		Env:   []string{"LC_ALL=C", "PATH=/usr/bin:/bin"},
		Files: append(passed, gate),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("qemu: start %s: %w", path, err)
	}
	p, err := watch(child.Pid, child)
	if err != nil {
		return nil, errors.Join(err, child.Kill(), wait(child))
	}
	if err := limit(child.Pid, limits); err != nil {
		err = errors.Join(err, p.kill())
		<-p.done
		return nil, err
	}
	return p, nil
}

func wait(child *os.Process) error {
	_, err := child.Wait()
	return err
}

// watch follows a process until it ends. No thread waits for it. A child may have ended already.
func watch(pid int, child *os.Process) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("qemu: watch process %d: %w", pid, err)
	}
	p := &process{pid: pid, child: child, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	if p.start, err = startTime(pid); err != nil && (child == nil || !errors.Is(err, errGone)) {
		return nil, errors.Join(err, p.pidfd.Close())
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("qemu: watch process %d: %w", pid, err), p.pidfd.Close())
	}
	go func() {
		defer p.pidfd.Close()
		defer close(p.done)
		// The first call finds the descriptor not ready unless the process has ended; the poller calls again.
		err := raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n > 0
		})
		if p.child != nil {
			state, waitErr := p.child.Wait() // at once, unless the poller failed
			if waitErr == nil {
				p.status = state.String()
			}
			return
		}
		if err != nil {
			p.status = "watching it failed: " + err.Error()
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
		return fmt.Errorf("qemu: end process %d: %w", p.pid, err)
	}
	return nil
}

// limitsFor bounds what the process may take.
func limitsFor(fileBytes int64, ownUser bool, vcpus int) map[int]uint64 {
	limits := map[int]uint64{
		unix.RLIMIT_CORE:   0, // a core file would hold the guest's secrets
		unix.RLIMIT_NOFILE: 256,
		unix.RLIMIT_FSIZE:  uint64(fileBytes),
	}
	if ownUser {
		limits[unix.RLIMIT_NPROC] = uint64(vcpus) + 128 // threads; the block layer's pool has up to 64
	}
	return limits
}

func limit(pid int, limits map[int]uint64) error {
	for resource, n := range limits {
		var old unix.Rlimit
		if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
			return limitError(pid, err)
		}
		n = min(n, old.Max) // more than its parent's only a privileged server could give it
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
			return limitError(pid, err)
		}
	}
	return nil
}

func limitError(pid int, err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil // ended already, which its owner learns elsewhere
	}
	return fmt.Errorf("qemu: limit process %d: %w", pid, err)
}

var errGone = errors.New("the process has ended")

// startTime reads when a process started, in ticks since boot. A process that has ended but was not waited for yet
// counts as gone.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, errGone
	}
	if err != nil {
		return 0, fmt.Errorf("qemu: %w", err)
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
		return 0, 0, fmt.Errorf("qemu: %.80q is not a process status", text)
	}
	if start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return 0, 0, fmt.Errorf("qemu: process status: %w", err)
	}
	return fields[0][0], start, nil
}

// findProcess looks through all processes for one whose working directory is path; 0 when there is none. The directory
// belongs to one VM alone and nothing but its QEMU is ever started in it.
func findProcess(path string) int {
	want, err := os.Stat(path)
	if err != nil {
		return 0
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		got, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
		if err == nil && os.SameFile(want, got) {
			return pid
		}
	}
	return 0
}
