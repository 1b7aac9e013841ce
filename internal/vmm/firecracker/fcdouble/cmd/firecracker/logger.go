package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// openSink opens a file or FIFO for a log or metrics. What is there is written over from its start; before version 1.14 the file
// had to be there.
func (r release) openSink(path string) (*os.File, error) {
	flag := os.O_RDWR | unix.O_NONBLOCK
	switch {
	case r.since(15):
		flag |= os.O_CREATE
	case r.since(14):
		flag = os.O_WRONLY | os.O_CREATE | unix.O_NONBLOCK
	}
	return os.OpenFile(path, flag, 0o666)
}

// logger writes log lines, to standard output until it has a file.
type logger struct {
	rel release
	id  string

	mu  sync.Mutex
	out io.Writer
}

func (l *logger) open(path string) error {
	f, err := l.rel.openSink(path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = f
	return nil
}

func (l *logger) print(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A log that cannot be written to stops nothing.
	fmt.Fprintf(l.out, "%s [%s:main] %s\n", time.Now().Format("2006-01-02T15:04:05.000000000"), l.id, fmt.Sprintf(format, args...))
}

func validLevel(level string) bool {
	switch strings.ToLower(level) {
	case "off", "trace", "debug", "info", "warn", "warning", "error":
		return true
	}
	return false
}

// say is an error in the words of the original, which begin and end as they please.
func say(format string, args ...any) error { return fmt.Errorf(format, args...) }
