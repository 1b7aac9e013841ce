package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"
)

// consoleLimit is how much of a guest's console is kept, at least; twice as much is the most that is on disk.
const consoleLimit = 256 << 10

// consoleLog writes what the guest prints to a file of bounded size. The server writes it and not QEMU, so that a guest
// that floods its console can fill nothing: while no server is there, QEMU drops what the guest prints.
type consoleLog struct {
	path string
	conn net.Conn
	done chan struct{}
}

func followConsole(path string, conn net.Conn, log *slog.Logger) *consoleLog {
	l := &consoleLog{path: path, conn: conn, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer conn.Close()
		if err := l.follow(); err != nil && !errors.Is(err, net.ErrClosed) {
			log.Warn("the console is no longer recorded", "error", err)
		}
	}()
	return l
}

func (l *consoleLog) follow() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	size := fi.Size()
	buf := make([]byte, 4096)
	for {
		n, err := l.conn.Read(buf)
		if n > 0 && size+int64(n) > 2*consoleLimit {
			if size, err = cutHead(f, consoleLimit); err != nil {
				return err
			}
		}
		if n > 0 {
			if _, err := f.Write(buf[:n]); err != nil {
				return err
			}
			size += int64(n)
		}
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) { // QEMU has ended
			return nil
		}
		if err != nil {
			return err
		}
	}
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

// stop ends the following once what has arrived is written.
func (l *consoleLog) stop() {
	l.conn.Close()
	<-l.done
}

// boundLog cuts a log that another process appends to, once it is longer than limit.
func boundLog(path string, limit int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() <= limit {
		return err
	}
	_, err = cutHead(f, limit/2)
	return err
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
		return nil, fmt.Errorf("qemu: %w", err)
	}
	defer f.Close()
	return readTail(f, limit)
}

// lastLines is the end of a log for an error message: at most n lines of printable text.
func lastLines(text []byte, n int) string {
	text = bytes.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && r != 0xfffd {
			return r
		}
		return -1
	}, text)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return string(bytes.Join(lines, []byte("; ")))
}
