package frozen

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// chunkSize is the unit of the digest of a raw file.
const chunkSize = 1 << 20

// rawDigest is the digest of a big sparse file: SHA-256 over the file's size and, for each chunk of 1 MiB that is not
// all zeros, its number and SHA-256. Holes need not be read, chunks are hashed side by side, and the same content has
// the same digest however its holes lie.
func rawDigest(ctx context.Context, f *os.File, progress func(n int64)) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	chunks, err := dataChunks(f)
	if err != nil {
		return "", err
	}
	sums := make([][sha256.Size]byte, len(chunks))
	zero := make([]bool, len(chunks))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), 4, len(chunks)) {
		g.Go(func() error {
			buf := make([]byte, chunkSize)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(chunks) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				off := chunks[i] * chunkSize
				part := buf[:min(chunkSize, st.Size()-off)]
				if _, err := io.ReadFull(io.NewSectionReader(f, off, int64(len(part))), part); err != nil {
					return fmt.Errorf("read %s: %w", f.Name(), err)
				}
				if zero[i] = isZero(part); !zero[i] {
					sums[i] = sha256.Sum256(part)
				}
				if progress != nil {
					progress(int64(len(part)))
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	h := sha256.New()
	var word [8]byte
	put := func(n int64) {
		binary.BigEndian.PutUint64(word[:], uint64(n))
		h.Write(word[:])
	}
	h.Write([]byte("spore raw digest 1\n"))
	put(st.Size())
	for i, chunk := range chunks {
		if !zero[i] {
			put(chunk)
			h.Write(sums[i][:])
		}
	}
	return "raw1:" + hex.EncodeToString(h.Sum(nil)), nil
}

// dataChunks lists the numbers of the chunks that are not wholly inside a hole.
func dataChunks(f *os.File) ([]int64, error) {
	extents, err := dataExtents(f)
	if err != nil {
		return nil, err
	}
	var out []int64
	last := int64(-1)
	for _, r := range extents {
		for c := max(r.Offset/chunkSize, last+1); c*chunkSize < r.End(); c++ {
			out = append(out, c)
			last = c
		}
	}
	return out, nil
}

func bytesDigest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}
