package frozen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sporevm/spore"
)

// Verifier answers whether a big immutable file is still what it was, without reading it each time: it reads it in
// full when first asked and again whenever inode, size, mtime or ctime are not those of the last verification, which it
// remembers in a file beside it, named like it with ".seen" at the end.
type Verifier struct {
	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the reading of that path is over
}

// NewVerifier makes a Verifier. One is enough for a process: concurrent questions about one file share one reading.
func NewVerifier() *Verifier { return &Verifier{busy: map[string]chan struct{}{}} }

// sighting is how a file looked when it was read in full, and the digest it had.
type sighting struct {
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"`
	Mtime  int64  `json:"mtime"` // ns
	Ctime  int64  `json:"ctime"` // ns
	Digest string `json:"digest"`
}

func look(f *os.File) (sighting, error) {
	info, err := f.Stat()
	if err != nil {
		return sighting{}, err
	}
	if !info.Mode().IsRegular() {
		return sighting{}, fmt.Errorf("%s is not a file", f.Name())
	}
	st := info.Sys().(*syscall.Stat_t)
	return sighting{Inode: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}, nil
}

// Admit reads the file in full and returns its digest, and remembers it.
func (v *Verifier) Admit(ctx context.Context, path string) (string, error) {
	release, err := v.acquire(ctx, path)
	if err != nil {
		return "", err
	}
	defer release()
	return v.measure(ctx, path, nil)
}

// Verify fails with CodeDamaged when the file does not have the digest, and CodeNotFound when there is no file.
func (v *Verifier) Verify(ctx context.Context, path, digest string) error {
	if v.remembered(path) == digest {
		return nil
	}
	release, err := v.acquire(ctx, path)
	if err != nil {
		return err
	}
	defer release()
	if v.remembered(path) == digest { // someone else has read it while we waited
		return nil
	}
	return v.compare(ctx, path, digest, nil)
}

// Scrub is Verify that reads the file in full, whatever is remembered. progress may be nil; it gets the bytes read
// since it was last called, and must be fit for concurrent calls.
func (v *Verifier) Scrub(ctx context.Context, path, digest string, progress func(n int64)) error {
	release, err := v.acquire(ctx, path)
	if err != nil {
		return err
	}
	defer release()
	return v.compare(ctx, path, digest, progress)
}

func (v *Verifier) compare(ctx context.Context, path, digest string, progress func(n int64)) error {
	got, err := v.measure(ctx, path, progress)
	if errors.Is(err, fs.ErrNotExist) {
		return spore.Errorf(spore.CodeNotFound, "%s is missing", filepath.Base(path)).WithCause(err)
	}
	if err != nil {
		return err
	}
	if got != digest {
		return damaged(filepath.Base(path), fmt.Errorf("it has digest %s, not %s", got, digest))
	}
	return nil
}

// acquire makes one reading of a path wait for the other.
func (v *Verifier) acquire(ctx context.Context, path string) (release func(), err error) {
	for {
		v.mu.Lock()
		wait, taken := v.busy[path]
		if !taken {
			done := make(chan struct{})
			v.busy[path] = done
			v.mu.Unlock()
			return func() {
				v.mu.Lock()
				delete(v.busy, path)
				v.mu.Unlock()
				close(done)
			}, nil
		}
		v.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// remembered is the digest of the file if it still looks as when it was last read in full, else "".
func (v *Verifier) remembered(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	now, err := look(f)
	if err != nil {
		return ""
	}
	data, err := readSmall(path + ".seen")
	if err != nil {
		return ""
	}
	var then sighting
	if unseal(whatSeen, 1, data, &then) != nil {
		return "" // a torn or damaged memory is none
	}
	now.Digest = then.Digest
	if now != then {
		return ""
	}
	return then.Digest
}

// tick is longer than the step of the clock that file systems stamp files with: at most 10 ms, with HZ=100.
const tick = 12 * time.Millisecond

func (v *Verifier) measure(ctx context.Context, path string, progress func(n int64)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	before, err := look(f)
	if err != nil {
		return "", err
	}
	// A write within the same tick as the last change would leave no trace in the times: let the tick pass first.
	if age := time.Since(time.Unix(0, max(before.Mtime, before.Ctime))); age >= 0 && age < tick {
		select {
		case <-time.After(tick - age):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	digest, err := rawDigest(ctx, f, progress)
	if err != nil {
		return "", err
	}
	after, err := look(f)
	if err != nil {
		return "", err
	}
	if before != after {
		return "", spore.Errorf(spore.CodeConflict, "%s changed while it was being read", filepath.Base(path))
	}
	after.Digest = digest
	data, err := seal(whatSeen, 1, after)
	if err == nil {
		// Neither atomic nor synced: a torn one does not pass its seal and only costs another reading.
		err = os.WriteFile(path+".seen", data, 0o644)
	}
	if err != nil {
		slog.Warn("cannot remember a verification; the file will be read again", "path", path, "err", err)
	}
	return digest, nil
}
