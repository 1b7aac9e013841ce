package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// writeImage writes the filesystem to dir, and fills in what a knows of the file.
func (b *build) writeImage(ctx context.Context, tree *rootfs.Tree, dir string, a *Artifact) error {
	uuid := sha256.Sum256([]byte("spore filesystem of " + b.id))
	layout, err := ext4.Plan(tree.Root, ext4.Options{UUID: [16]byte(uuid[:16]), HashSeed: [16]byte(uuid[16:]), Label: "spore"})
	var refused *ext4.Error
	if errors.As(err, &refused) {
		return spore.Errorf(spore.CodeInvalid, "the image's file %w", refused).WithHint("Spore's root filesystems are ext4; change the file in the image")
	}
	if err != nil {
		return err
	}
	release, err := b.room(layout.DataEnd())
	if err != nil {
		return err
	}
	defer release()
	f, err := os.OpenFile(filepath.Join(dir, artifactFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return diskError(err, dir, layout.DataEnd())
	}
	defer f.Close()
	if err := b.writeTo(ctx, tree, layout, f, a); err != nil {
		return diskError(err, dir, layout.DataEnd())
	}
	return b.seal(f, dir, a)
}

func (b *build) writeTo(ctx context.Context, tree *rootfs.Tree, layout *ext4.Layout, f *os.File, a *Artifact) error {
	contents := tree.Contents(layout)
	needed := 0
	for i := range b.image.layers {
		if contents.Needed(i) {
			needed++
		}
	}
	b.track.begin(PhaseBuilding, needed, layout.Size())
	if err := reserve(f, layout); err != nil {
		return err
	}
	h := sha256.New()
	counted := writerFunc(func(p []byte) (int, error) {
		b.track.add(int64(len(p)))
		return h.Write(p)
	})
	meta := bufio.NewWriterSize(io.MultiWriter(f, counted), 1<<20)
	if err := errors.Join(layout.WriteMeta(meta), meta.Flush()); err != nil {
		return err
	}
	if err := contents.FillAdded(f); err != nil {
		return err
	}
	front := newFrontier(contents, len(b.image.layers), layout)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer front.stop()
		if err := b.fill(ctx, contents, f, front); err != nil {
			return err
		}
		front.finish()
		return nil
	})
	group.Go(func() error { return follow(f, layout.DataOffset(), layout.Size(), front, counted) })
	if err := group.Wait(); err != nil {
		return err
	}
	a.Digest = digestOf(h)
	a.SizeBytes = layout.Size()
	return nil
}

// reserve gives the file its size and, so that a full disk shows at once, its blocks.
func reserve(f *os.File, layout *ext4.Layout) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, layout.DataEnd())
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("reserve %d bytes: %w", layout.DataEnd(), err)
	}
	return f.Truncate(layout.Size())
}

// seal makes the file durable and takes down its state, by which later checks know that it is untouched.
func (b *build) seal(f *os.File, dir string, a *Artifact) error {
	if err := errors.Join(f.Chmod(0o444), f.Sync()); err != nil {
		return diskError(err, dir, a.SizeBytes)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	a.AllocatedBytes = st.Blocks * 512
	state, err := stateOf(f)
	if err != nil {
		return err
	}
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return b.store.writeFile(filepath.Join(dir, verifiedFile), data)
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// frontier knows up to which offset an image file is complete, while several layers are written to it at once.
type frontier struct {
	mu      sync.Mutex
	changed *sync.Cond
	layers  []rootfs.Extent // of the layers that have content; they follow each other
	index   map[int]int     // layer to its place among them
	reached []int64
	next    int // the first of layers that is not complete
	end     int64
	at      int64
	stopped bool
}

func newFrontier(c *rootfs.Contents, layers int, layout *ext4.Layout) *frontier {
	f := &frontier{index: map[int]int{}, end: layout.Size(), at: layout.DataOffset()}
	f.changed = sync.NewCond(&f.mu)
	for i := range layers {
		if c.Needed(i) {
			f.index[i] = len(f.layers)
			f.layers = append(f.layers, c.Extent(i))
			f.reached = append(f.reached, c.Extent(i).Start)
		}
	}
	return f
}

// reach says that a layer is complete up to an offset.
func (f *frontier) reach(layer int, at int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reached[f.index[layer]] = at
	for f.next < len(f.layers) {
		f.at = max(f.at, f.reached[f.next])
		if f.reached[f.next] < f.layers[f.next].End {
			break
		}
		f.next++
	}
	f.changed.Broadcast()
}

// finish says that the whole file is complete.
func (f *frontier) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = f.end
	f.changed.Broadcast()
}

// stop wakes whoever waits: nothing more will come.
func (f *frontier) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	f.changed.Broadcast()
}

// wait returns how far the file is complete, as soon as that is beyond after. It returns false if it never will be.
func (f *frontier) wait(after int64) (int64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.at <= after && !f.stopped {
		f.changed.Wait()
	}
	return f.at, f.at > after
}

// follow reads the file from start to end, close behind those who write it, while it is still in memory.
func follow(f io.ReaderAt, start, end int64, front *frontier, to io.Writer) error {
	buf := make([]byte, 1<<20)
	for at := start; at < end; {
		limit, ok := front.wait(at)
		if !ok {
			return nil // the writers failed, and say why
		}
		for at < limit {
			p := buf[:min(int64(len(buf)), limit-at)]
			if n, err := f.ReadAt(p, at); n < len(p) {
				return fmt.Errorf("read back: %w", err)
			}
			if _, err := to.Write(p); err != nil {
				return err
			}
			at += int64(len(p))
		}
	}
	return nil
}
