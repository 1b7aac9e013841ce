package usernet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// record is what a later server needs to find a sidecar again and to be sure that it is the one.
type record struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`  // ticks since the host's boot
	BootID string `json:"bootId"` // of the host
}

func writeRecord(dir string, pid int) error {
	start, err := startTime(pid)
	if err != nil && !errors.Is(err, errGone) {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	text, err := json.Marshal(record{pid, start, boot})
	if err != nil {
		return fmt.Errorf("usernet: %w", err)
	}
	// It matters only as long as this host is up, so it need not reach the medium, only be whole.
	path := filepath.Join(dir, nameRecord)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return diskError("record the network process", err)
	}
	return os.Rename(path+".new", path)
}

func readRecord(dir string) (record, error) {
	text, err := os.ReadFile(filepath.Join(dir, nameRecord))
	if err != nil {
		return record{}, err
	}
	return parseRecord(text)
}

func parseRecord(text []byte) (record, error) {
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.PID <= 0 || r.BootID == "" {
		return record{}, spore.Errorf(spore.CodeDamaged, "the record of the network process is damaged").WithCause(err)
	}
	return r, nil
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("usernet: %w", err)
	}
	return string(bytes.TrimSpace(text)), nil
}

var errGone = errors.New("the process is gone")

// startTime is when a process started, in ticks since boot. One that has ended and waits to be noticed counts as gone.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, errGone
	}
	if err != nil {
		return 0, fmt.Errorf("usernet: %w", err)
	}
	return parseStat(text)
}

// parseStat reads the start time from /proc/PID/stat. The name in parentheses may hold anything.
func parseStat(text []byte) (uint64, error) {
	i := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[i+1:]))
	if i < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("usernet: %.80q is not a process status", text)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, errGone
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("usernet: process status: %w", err)
	}
	return start, nil
}

// lives says whether the recorded process is still there.
func (r record) lives() bool {
	boot, err := bootID()
	if err != nil || boot != r.BootID {
		return false
	}
	start, err := startTime(r.PID)
	return err == nil && start == r.Start
}

// kill ends the recorded process, if it is still there, and waits for its end.
func (r record) kill(ctx context.Context) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("usernet: watch process %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	// Held by its descriptor, the process cannot make room for another with its pid.
	if !r.lives() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("usernet: end process %d: %w", r.PID, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(50*time.Millisecond/time.Millisecond))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("usernet: wait for process %d: %w", r.PID, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("usernet: waiting for the end of process %d: %w", r.PID, ctx.Err())
		}
	}
}

// await waits for the end of the recorded process. No thread waits for it.
func (r record) await(ctx context.Context) error {
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("usernet: watch process %d: %w", r.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if !r.lives() {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("usernet: watch process %d: %w", r.PID, err)
	}
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	// The first call finds the descriptor not ready unless the process has ended; the poller calls again.
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("usernet: watch process %d: %w", r.PID, err)
	}
	return nil
}

// lastWords is the end of a log, for messages.
func lastWords(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "it left no message"
	}
	defer f.Close()
	const most = 600
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > most {
		_, err = f.Seek(-most, io.SeekEnd)
		if err != nil {
			return "its log cannot be read"
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "its log cannot be read"
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return "it left no message"
	}
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(string(text), "?"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
}
