package rootfs

import (
	"errors"
	"io"
	"sync/atomic"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/tape"
)

// budget is what the layers of one image have used up together.
type budget struct {
	bytes, entries, metadata atomic.Int64
}

// limitedReader ends a stream with an error once it, or the image as a whole, is too long.
type limitedReader struct {
	r       io.Reader
	layer   string
	scanner *Scanner
	read    int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	l.read += int64(n)
	if l.read > l.scanner.limits.LayerBytes {
		return 0, overLimit(l.layer, "bytes when uncompressed", l.scanner.limits.LayerBytes)
	}
	if l.scanner.budget.bytes.Add(int64(n)) > l.scanner.limits.TotalBytes {
		return 0, overLimit(l.layer, "bytes in all layers when uncompressed", l.scanner.limits.TotalBytes)
	}
	return n, err
}

// readError says in which layer reading went wrong. Errors that already carry a code pass unchanged: the source of the
// stream knows best what a failed read means.
func readError(layer string, err error) error {
	var typed *spore.Error
	if errors.As(err, &typed) {
		return err
	}
	if errors.Is(err, tape.ErrFormat) || errors.Is(err, io.ErrUnexpectedEOF) {
		return spore.Errorf(spore.CodeInvalid, "layer %s: %w", layer, err).
			WithHint("the layer's archive is cut short or malformed; build the image again")
	}
	return err
}
