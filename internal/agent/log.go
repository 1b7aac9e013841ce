package agent

import (
	"os"
	"sync"
)

const (
	logMemory = 256 << 10 // bytes of output kept in memory
	logOnDisk = 1 << 20   // bytes after which the file is begun anew, the old one kept beside it
)

// outputLog keeps the last output of the image's own command. Offsets count from the first byte ever written.
type outputLog struct {
	path string

	mu     sync.Mutex
	buf    []byte // the last bytes
	end    int64  // offset behind the last byte
	closed bool
	change chan struct{} // closed when anything changes, then replaced
	file   *os.File
	inFile int64
	failed error // why the file is not written any more; memory goes on
}

func newLog(path string) *outputLog {
	return &outputLog{path: path, change: make(chan struct{})}
}

// Write never fails and never waits: the command must not be held up by its log.
func (l *outputLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end += int64(len(p))
	l.buf = append(l.buf, p...)
	if len(l.buf) > 2*logMemory {
		l.buf = append([]byte(nil), l.buf[len(l.buf)-logMemory:]...)
	}
	if l.path != "" && l.failed == nil {
		l.failed = l.writeFile(p)
	}
	l.notify()
	return len(p), nil
}

func (l *outputLog) writeFile(p []byte) (err error) {
	if l.file != nil && l.inFile+int64(len(p)) > logOnDisk {
		if err := l.file.Close(); err != nil {
			return err
		}
		l.file = nil
		if err := os.Rename(l.path, l.path+".1"); err != nil {
			return err
		}
	}
	if l.file == nil {
		if l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
			return err
		}
		l.inFile = 0
	}
	n, err := l.file.Write(p)
	l.inFile += int64(n)
	return err
}

// close says that nothing more will come.
func (l *outputLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.notify()
}

func (l *outputLog) notify() {
	close(l.change)
	l.change = make(chan struct{})
}

// from returns a copy of what was written at and behind offset, as far as it is still kept, the offset of its first byte,
// and a channel that is closed when there is more; nil when there will be none.
func (l *outputLog) from(offset int64) (data []byte, start int64, change <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.buf[max(0, len(l.buf)-logMemory):]
	oldest := l.end - int64(len(kept))
	start = min(max(offset, oldest), l.end)
	data = append(data, kept[start-oldest:]...)
	if !l.closed {
		change = l.change
	}
	return data, start, change
}
