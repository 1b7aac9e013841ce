package link

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxLine bounds a control line. Longer ones are noise from before a thaw.
const maxLine = 256

const resetVerb = "RESET "

// resetLine is what the host writes. It begins with a line end, so that half a line left by an earlier host does not
// spoil it.
func resetLine(n nonce) []byte { return []byte("\n" + resetVerb + n.String() + "\n") }

// parseControl reads one control line, without its line end.
func parseControl(line []byte) (nonce, error) {
	arg, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\r")), []byte(resetVerb))
	if !ok {
		return nonce{}, fmt.Errorf("unknown control line %q", line)
	}
	return parseNonce(string(arg))
}

// readResets calls reset for each well-formed RESET line of r until r ends. Of several lines that have arrived
// together only the last one counts: the host has given up on the others. Anything else on the port is skipped.
func readResets(r io.Reader, reset func(nonce)) error {
	in := bufio.NewReaderSize(r, maxLine)
	var latest nonce
	var pending, skipping bool
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			skipping = true
			continue
		case err != nil:
			return err
		}
		if n, err := parseControl(line[:len(line)-1]); err == nil && !skipping {
			latest, pending = n, true
		}
		skipping = false
		if pending && bytes.IndexByte(buffered(in), '\n') < 0 {
			pending = false
			reset(latest)
		}
	}
}

func buffered(in *bufio.Reader) []byte {
	p, _ := in.Peek(in.Buffered()) // never short: it is buffered
	return p
}
