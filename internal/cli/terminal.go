package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/sporevm/spore/client"
)

// terminal is the user's terminal while a command in a sandbox has it.
type terminal struct {
	in, out *os.File
	before  *term.State
}

// openTerminal hands the terminal to a command: keys, Ctrl-C among them, go to it as they are. It fails when standard
// input is none. A caller whose input is not to be read leaves the terminal's mode alone.
func openTerminal(stdin io.Reader, stdout io.Writer, raw bool) (*terminal, error) {
	t := &terminal{}
	t.in, _ = stdin.(*os.File)
	t.out, _ = stdout.(*os.File)
	if raw {
		if !isTerminal(stdin) {
			return nil, errors.New("-t needs a terminal, and standard input is none")
		}
		before, err := term.MakeRaw(int(t.in.Fd()))
		if err != nil {
			return nil, err
		}
		t.before = before
	}
	return t, nil
}

// close gives the terminal back as it was.
func (t *terminal) close() error {
	if t.before == nil {
		return nil
	}
	return term.Restore(int(t.in.Fd()), t.before)
}

// defaultTTY is the size of a terminal that does not say.
var defaultTTY = client.TTY{Cols: 80, Rows: 24}

func (t *terminal) size() client.TTY {
	for _, f := range []*os.File{t.out, t.in} {
		if f == nil {
			continue
		}
		if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
			return client.TTY{Cols: uint16(min(cols, 1<<16-1)), Rows: uint16(min(rows, 1<<16-1))}
		}
	}
	return defaultTTY
}

// followSize tells cmd, which was started on a terminal of the size last, when the size changes, until stop is called.
func (t *terminal) followSize(ctx context.Context, cmd *client.Command, last client.TTY) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			// At once, too: it may have changed before anyone listened. A size that does not arrive is put right by the next one.
			if now := t.size(); now != last && cmd.Resize(ctx, now) == nil {
				last = now
			}
			select {
			case <-done:
				return
			case <-changes:
			}
		}
	}()
	return func() {
		signal.Stop(changes)
		close(done)
	}
}

// guestOutput is where the raw output of a guest goes: as it is, unless that would let it speak to the user's terminal
// without having been given one.
func (a *app) guestOutput(w io.Writer) io.Writer {
	if isTerminal(w) {
		return &cleaner{w: w}
	}
	return w
}

// cleaner passes text on and escapes control characters, but for those that lay it out and those of colours.
type cleaner struct {
	w    io.Writer
	rest []byte // an unfinished character
}

func (c *cleaner) Write(p []byte) (int, error) {
	buf := append(c.rest, p...)
	keep := 0
	for keep < utf8.UTFMax && keep < len(buf) && !utf8.FullRune(buf[len(buf)-keep-1:]) {
		keep++
		if utf8.RuneStart(buf[len(buf)-keep]) {
			break
		}
	}
	whole := buf[:len(buf)-keep]
	c.rest = append([]byte(nil), buf[len(buf)-keep:]...)
	lines := strings.Split(string(whole), "\n")
	for i, line := range lines {
		parts := strings.Split(strings.TrimSuffix(line, "\r"), "\t")
		for j := range parts {
			parts[j] = printable(parts[j], false)
		}
		lines[i] = strings.Join(parts, "\t")
	}
	if _, err := io.WriteString(c.w, strings.Join(lines, "\n")); err != nil {
		return 0, err
	}
	return len(p), nil
}
