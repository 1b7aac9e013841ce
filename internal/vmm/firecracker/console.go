package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// makePipe makes a named pipe for uid, and opens it for the process that will write to it.
func makePipe(path string, uid int) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, diskError("make a pipe", err)
	}
	if uid >= 0 {
		if err := os.Lchown(path, uid, uid); err != nil {
			return nil, fmt.Errorf("firecracker: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	return f, nil
}

// record follows a pipe until its last writer is gone, and keeps the end of what comes out of it in the file path. A pipe and
// not a file is what Firecracker writes to, so that a guest that floods its console can fill nothing: while no server is there
// to read, Firecracker drops what does not fit into the pipe. It holds the pipe open for reading too, so that it is never
// without a reader.
func record(pipe, path string, log *slog.Logger) (*vmlog.Follower, error) {
	f, err := vmlog.OpenPipe(pipe) // and nothing else: what lies in a jail its inmate may have replaced
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	// Now and not later, since a process may be moved to another directory once it runs.
	r, err := vmlog.Follow(path, f, log)
	if err != nil {
		return nil, diskError("record what a VM says", err)
	}
	return r, nil
}

// lastLines is the end of a log for an error message: at most n lines of printable text.
func lastLines(text []byte, n int) string {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return printable(bytes.Join(lines, []byte("; ")), 2000)
}

// diskError tells a full disk from a defect.
func diskError(what string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return spore.Errorf(spore.CodeNoSpace, "no room on the disk to %s", what).WithCause(err)
	}
	return fmt.Errorf("firecracker: %s: %w", what, err)
}
