package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	spore "github.com/sporevm/spore"
)

// blobStore keeps what images consist of in files named by their SHA-256. A file that is there is complete and was what
// its name says when it was written.
type blobStore struct {
	dir   string // holds the files
	tmp   string
	locks keyedMutex
}

// path returns where the blob is kept. Only SHA-256 digests can be kept.
func (b *blobStore) path(digest v1.Hash) (string, error) {
	if digest.Algorithm != "sha256" || len(digest.Hex) != 2*sha256.Size {
		return "", spore.Errorf(spore.CodeInvalid, "the digest %q is not a SHA-256 digest", digest.String()).
			WithHint("build the image again with a current tool")
	}
	if _, err := hex.DecodeString(digest.Hex); err != nil || strings.ToLower(digest.Hex) != digest.Hex {
		return "", spore.Errorf(spore.CodeInvalid, "the digest %q is malformed", digest.String())
	}
	return filepath.Join(b.dir, digest.Hex), nil
}

// has says whether a blob is kept, with the size that is expected. A size below 0 fits any.
func (b *blobStore) has(digest v1.Hash, size int64) bool {
	path, err := b.path(digest)
	if err != nil {
		return false
	}
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && (size < 0 || st.Size() == size)
}

// ensure makes sure that a blob is kept. If it is not, it is read from what open returns, and digest and size are
// verified. Of several callers at once, one does the work. progress learns of bytes as they arrive.
func (b *blobStore) ensure(ctx context.Context, d v1.Descriptor, what string, open func() (io.ReadCloser, error), progress func(int64)) error {
	path, err := b.path(d.Digest)
	if err != nil {
		return err
	}
	unlock, err := b.locks.lock(ctx, d.Digest.Hex)
	if err != nil {
		return err
	}
	defer unlock()
	if b.has(d.Digest, d.Size) {
		progress(d.Size)
		return nil
	}
	src, err := open()
	if err != nil {
		return err
	}
	defer src.Close()

	f, err := createScratch(b.tmp, scratchPrefix+"blob-*")
	if err != nil {
		return diskError(err, b.tmp, d.Size)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var copied int64
	if err := b.receive(ctx, f, src, d, what, func(n int64) { copied += n; progress(n) }); err != nil {
		progress(-copied)
		return diskError(err, b.tmp, d.Size)
	}
	if err := errors.Join(f.Chmod(0o444), f.Sync()); err != nil {
		return diskError(err, b.tmp, d.Size)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(b.dir)
}

// receive copies a blob and verifies it.
func (b *blobStore) receive(ctx context.Context, dst io.Writer, src io.Reader, d v1.Descriptor, what string, progress func(int64)) error {
	h := sha256.New()
	buf := make([]byte, 256<<10)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.Read(buf)
		if total += int64(n); d.Size >= 0 && total > d.Size {
			return damaged(what, d, fmt.Sprintf("is longer than its %d bytes", d.Size))
		}
		h.Write(buf[:n])
		if _, err := dst.Write(buf[:n]); err != nil {
			return err
		}
		progress(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if d.Size >= 0 && total != d.Size {
		return damaged(what, d, fmt.Sprintf("has %d bytes instead of %d", total, d.Size))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.Digest.Hex {
		return damaged(what, d, "has the digest sha256:"+got)
	}
	return nil
}

func damaged(what string, d v1.Descriptor, how string) error {
	return spore.Errorf(spore.CodeDamaged, "%s %s %s", what, d.Digest, how).
		WithHint("the image's source is damaged or was tampered with; push or save the image again")
}

// open opens a kept blob.
func (b *blobStore) open(digest v1.Hash) (*os.File, error) {
	path, err := b.path(digest)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// read returns a small blob, verified. A blob that has rotted is removed and reported as absent.
func (b *blobStore) read(digest v1.Hash, limit int64) ([]byte, error) {
	f, err := b.open(digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest.Hex {
		return nil, errors.Join(fs.ErrNotExist, b.remove(digest))
	}
	return data, nil
}

// verify reads a kept blob in full. It removes one that has rotted and says so.
func (b *blobStore) verify(ctx context.Context, digest v1.Hash) (intact bool, err error) {
	f, err := b.open(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, ctxReader{ctx, f}); err != nil {
		return false, err
	}
	if hex.EncodeToString(h.Sum(nil)) == digest.Hex {
		return true, nil
	}
	return false, b.remove(digest)
}

func (b *blobStore) remove(digest v1.Hash) error {
	path, err := b.path(digest)
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// ctxReader ends a long read when its context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
