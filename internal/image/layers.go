package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// fetchAttempts is how often a download that breaks off is tried.
const fetchAttempts = 3

// fetch makes sure that the store has a layer.
func (b *build) fetch(ctx context.Context, l layer, progress func(int64)) error {
	open := func() (io.ReadCloser, error) { return b.image.source.open(ctx, l.desc) }
	for attempt := 1; ; attempt++ {
		err := b.store.blobs.ensure(ctx, l.desc, "layer", open, progress)
		if spore.CodeOf(err) != spore.CodeUnreachable || attempt == fetchAttempts {
			return err
		}
		b.store.log.Info("download broke off, trying again", "layer", l.desc.Digest.String(), "attempt", attempt, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 500 * time.Millisecond):
		}
	}
}

func quiet(int64) {}

// open opens a layer, uncompressed. One that was swept from the store since it was pulled is fetched again.
func (b *build) open(ctx context.Context, l layer, progress func(int64)) (io.ReadCloser, error) {
	r, err := b.store.blobs.openLayer(l.desc, progress)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if err := b.fetch(ctx, l, quiet); err != nil {
		return nil, err
	}
	return b.store.blobs.openLayer(l.desc, progress)
}

// unpack reads all layers and puts them on top of each other. It returns the paths of files that were written for the
// egress certificate.
func (b *build) unpack(ctx context.Context) (*rootfs.Tree, []string, error) {
	layers, err := b.scanAll(ctx)
	if err != nil {
		return nil, nil, err
	}
	tree := rootfs.NewTree()
	for i, l := range layers {
		if err := tree.Apply(ctx, l); err != nil {
			return nil, nil, err
		}
		layers[i] = nil // what is still visible of it is in the tree
	}
	if b.ca == nil {
		return tree, nil, nil
	}
	targets, err := tree.BakeCA(b.ca, func(files []*ext4.Node) (map[*ext4.Node][]byte, error) {
		return rootfs.ReadFiles(ctx, files, func(i int) (io.ReadCloser, error) {
			return b.open(ctx, b.image.layers[i], quiet)
		})
	})
	return tree, targets, err
}

func (b *build) scanAll(ctx context.Context) ([]*rootfs.Layer, error) {
	var total int64
	for _, l := range b.image.layers {
		total += max(l.desc.Size, 0)
	}
	b.track.begin(PhaseUnpacking, len(b.image.layers), total)
	scanner := rootfs.NewScanner(b.store.opts.Limits)
	layers := make([]*rootfs.Layer, len(b.image.layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, l := range b.image.layers {
		group.Go(func() error {
			scanned, err := b.scan(ctx, scanner, l)
			if err != nil {
				return err
			}
			layers[i] = scanned
			b.track.layer()
			return nil
		})
	}
	return layers, group.Wait()
}

// scan reads a layer and verifies the digest of its uncompressed form. If the fault is in the store's copy, that is
// fetched again, once.
func (b *build) scan(ctx context.Context, scanner *rootfs.Scanner, l layer) (*rootfs.Layer, error) {
	scanned, err := b.scanOnce(ctx, scanner, l)
	if err == nil || ctx.Err() != nil {
		return scanned, err
	}
	intact, verifyErr := b.store.blobs.verify(ctx, l.desc.Digest)
	if verifyErr != nil || intact {
		return nil, err
	}
	b.store.log.Warn("a stored layer has rotted, fetching it again", "layer", l.desc.Digest.String(), "err", err)
	if err := b.fetch(ctx, l, quiet); err != nil {
		return nil, err
	}
	return b.scanOnce(ctx, scanner, l)
}

func (b *build) scanOnce(ctx context.Context, scanner *rootfs.Scanner, l layer) (*rootfs.Layer, error) {
	r, err := b.open(ctx, l, b.track.add)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h := sha256.New()
	scanned, err := scanner.Scan(ctx, l.desc.Digest.String(), io.TeeReader(r, h))
	if err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != l.diffID.Hex {
		return nil, spore.Errorf(spore.CodeDamaged, "layer %s is sha256:%s when uncompressed, but the image's config says %s", l.desc.Digest, got, l.diffID).
			WithHint("the image is inconsistent; build and push it again")
	}
	return scanned, nil
}

// fill writes the files of all layers to their places, and reports for each layer how far it is.
func (b *build) fill(ctx context.Context, contents *rootfs.Contents, w io.WriterAt, front *frontier) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, l := range b.image.layers {
		if !contents.Needed(i) {
			continue
		}
		group.Go(func() error {
			r, err := b.open(ctx, l, quiet)
			if err != nil {
				return err
			}
			defer r.Close()
			err = contents.Fill(ctx, i, l.desc.Digest.String(), r, w, func(at int64) { front.reach(i, at) })
			if err != nil {
				return fmt.Errorf("write the files of layer %s: %w", l.desc.Digest, err)
			}
			b.track.layer()
			return nil
		})
	}
	return group.Wait()
}
