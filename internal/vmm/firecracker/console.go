package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// keepLimit is how much of a console or a log is kept, at least; twice as much is the most that is on disk.
const keepLimit = 256 << 10

// recorder writes what comes out of a named pipe to a file of bounded size. A pipe and not a file is what Firecracker
// writes to, so that a guest that floods its console can fill nothing: while no server is there to read, Firecracker
// drops what does not fit into the pipe. It holds the pipe open for reading too, so that it is never without a reader.
type recorder struct {
	pipe *os.File
	done chan struct{}
}

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

// record follows the pipe until its last writer is gone.
func record(pipe, path string, log *slog.Logger) (*recorder, error) {
	// What lies in a jail its inmate may have replaced.
	f, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	if fi, err := f.Stat(); err != nil || fi.Mode()&fs.ModeNamedPipe == 0 {
		return nil, errors.Join(fmt.Errorf("firecracker: %s is not a pipe", pipe), err, f.Close())
	}
	// Now and not later, since a process may be moved to another directory once it runs.
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(diskError("record what a VM says", err), f.Close())
	}
	r := &recorder{pipe: f, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer f.Close()
		defer out.Close()
		if err := r.follow(out); err != nil && !errors.Is(err, os.ErrClosed) {
			log.Warn("a console or log is no longer recorded", "file", path, "error", err)
		}
	}()
	return r, nil
}

func (r *recorder) follow(out *os.File) error {
	fi, err := out.Stat()
	if err != nil {
		return err
	}
	size := fi.Size()
	buf := make([]byte, 16<<10)
	for {
		n, err := r.pipe.Read(buf)
		if n > 0 && size+int64(n) > 2*keepLimit {
			var cutErr error
			if size, cutErr = cutHead(out, keepLimit); cutErr != nil {
				return cutErr
			}
		}
		if n > 0 {
			if _, err := out.Write(buf[:n]); err != nil {
				return err
			}
			size += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// stop ends the following; what is still in the pipe stays there for the next server.
func (r *recorder) stop() {
	r.pipe.Close() // once more than needed at the end, which is not an error worth knowing
	<-r.done
}

// cutHead keeps the last keep bytes of an append-only file.
func cutHead(f *os.File, keep int64) (int64, error) {
	tail, err := readTail(f, int(keep))
	if err != nil {
		return 0, err
	}
	if err := f.Truncate(0); err != nil {
		return 0, err
	}
	n, err := f.Write(tail)
	return int64(n), err
}

func readTail(f *os.File, limit int) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := min(fi.Size(), int64(limit))
	buf := make([]byte, n)
	got, err := f.ReadAt(buf, fi.Size()-n)
	if err == io.EOF {
		err = nil // cut between Stat and ReadAt
	}
	return buf[:got], err
}

// tailOf reads the end of a file; one that is not there is empty.
func tailOf(path string, limit int) ([]byte, error) {
	if limit <= 0 {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	defer f.Close()
	return readTail(f, limit)
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
