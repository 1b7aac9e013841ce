package vmlog

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// used is how many bytes the files of a directory have.
func used(t *testing.T, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		fi, err := e.Info()
		must(t, err)
		n += fi.Size()
	}
	return n
}

func TestOnlyTheEndIsKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	l, err := open(path, 1000)
	must(t, err)
	var all []byte
	for i := range 2000 {
		line := fmt.Appendf(nil, "%d%s\n", i, strings.Repeat("x", i%97))
		all = append(all, line...)
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		if i%100 == 0 { // a restart of the server
			must(t, l.Close())
			if l, err = open(path, 1000); err != nil {
				t.Fatal(err)
			}
		}
		if n := used(t, dir); n > 2000 {
			t.Fatalf("%d bytes on disk", n)
		}
		// Whoever looks, at any time, finds the last thousand.
		got, err := Tail(path, 1000)
		must(t, err)
		if want := all[max(0, len(all)-1000):]; !bytes.Equal(got, want) {
			t.Fatalf("after %d bytes the log ends in %q, not %q", len(all), got, want)
		}
	}
	flood := bytes.Repeat([]byte("flood"), 1000)
	if n, err := l.Write(flood); n != len(flood) || err != nil {
		t.Fatal(n, err)
	}
	must(t, l.Close())
	if got, err := Tail(path, 1000); err != nil || !bytes.Equal(got, flood[4000:]) || used(t, dir) > 2000 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// TestMoved moves the directory of a log that is written, as a process that was started ahead is.
func TestMoved(t *testing.T) {
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	must(t, os.Mkdir(before, 0o700))
	l, err := open(filepath.Join(before, "log"), 10)
	must(t, err)
	must(t, os.Rename(before, after))
	must(t, os.Mkdir(before, 0o700)) // another's by now
	for _, text := range []string{"0123456789", "abcdefghij", "klm"} {
		_, err := l.Write([]byte(text))
		must(t, err)
	}
	must(t, l.Close())
	if text, err := Tail(filepath.Join(after, "log"), 100); string(text) != "abcdefghijklm" || err != nil || used(t, after) != 13 || used(t, before) != 0 {
		t.Errorf("%q (%v)", text, err)
	}
}

func TestFloodFillsNothing(t *testing.T) {
	dir := t.TempDir()
	path, pipe := filepath.Join(dir, "log"), filepath.Join(dir, "pipe")
	printer, err := Pipe(pipe)
	must(t, err)
	defer printer.Close()

	// Without a server the printer is not held up, and what it prints goes nowhere.
	dropped := false
	for range 1000 {
		raw, err := printer.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			_, err := syscall.Write(int(fd), bytes.Repeat([]byte("lost "), 1000))
			dropped = dropped || err == syscall.EAGAIN
		}))
	}
	if !dropped {
		t.Error("the pipe took five megabytes")
	}

	src, err := OpenPipe(pipe)
	must(t, err)
	f, err := Follow(path, src, slog.Default())
	must(t, err)
	chunk := bytes.Repeat([]byte("flooded\n"), 500)
	raw, err := printer.SyscallConn()
	must(t, err)
	put := func(p []byte) {
		for len(p) > 0 {
			must(t, raw.Control(func(fd uintptr) {
				if n, err := syscall.Write(int(fd), p); err == nil {
					p = p[n:]
				} else if err != syscall.EAGAIN {
					t.Error(err)
					p = nil
				}
			}))
		}
	}
	for i := range 4000 {
		put(chunk)
		if i%500 == 0 {
			if n := used(t, dir); n > 3*Keep { // a new file may stand beside the old one for a moment
				t.Fatalf("%d bytes on disk", n)
			}
		}
	}
	put([]byte("last words"))
	must(t, printer.Close())
	<-f.Done()
	if n := used(t, dir); n > 2*Keep {
		t.Errorf("%d bytes on disk", n)
	}
	text, err := Tail(path, Keep)
	if err != nil || len(text) != Keep || !bytes.HasSuffix(text, []byte("flooded\nlast words")) {
		t.Errorf("%d bytes that end in %.50q (%v)", len(text), text[max(0, len(text)-50):], err)
	}
	f.Stop()
}

func TestStopLeavesTheRest(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	printer, err := Pipe(pipe)
	must(t, err)
	defer printer.Close()
	for i := range 3 { // a server after the other
		src, err := OpenPipe(pipe)
		must(t, err)
		f, err := Follow(filepath.Join(dir, "log"), src, slog.Default())
		must(t, err)
		word := fmt.Sprintf("server %d ", i)
		io.WriteString(printer, word)
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			text, err := Tail(filepath.Join(dir, "log"), 1000)
			must(t, err)
			if strings.HasSuffix(string(text), word) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%q", text)
			}
		}
		f.Stop()
		f.Stop()
	}
	if _, err := OpenPipe(filepath.Join(dir, "log")); err == nil {
		t.Error("a file was taken for a pipe")
	}
}

func TestFullDiskDropsAndGoesOn(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	r, w := io.Pipe()
	out := &Log{name: "full", keep: Keep, f: f}
	defer f.Close()
	done := make(chan error, 1)
	go func() { done <- (&Follower{src: r}).follow(out, slog.New(slog.DiscardHandler)) }()
	for range 10 {
		if _, err := w.Write([]byte("no room")); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	must(t, <-done)
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if text, err := Tail(path, 10); len(text) > 0 || err != nil {
		t.Error(text, err)
	}
	must(t, os.WriteFile(path, []byte("0123456789"), 0o600))
	for limit, want := range map[int]string{-1: "", 0: "", 3: "789", 100: "0123456789"} {
		if text, err := Tail(path, limit); string(text) != want || err != nil {
			t.Errorf("%d: %q, %v", limit, text, err)
		}
	}
}

func FuzzLastLines(f *testing.F) {
	f.Add([]byte("a\nb\r\n\x1b[31mc\n\n"), 2)
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		if n < 0 || n > 100 {
			return
		}
		if out := LastLines(text, n); strings.ContainsAny(out, "\n\r\x1b\x00") {
			t.Fatalf("%q", out)
		}
	})
}
