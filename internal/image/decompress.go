package image

import (
	"errors"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	spore "github.com/sporevm/spore"
)

type compression int

const (
	uncompressed compression = iota
	gzipped
	zstandard
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// maxZstdWindow is the memory that a zstd layer may ask its reader for.
const maxZstdWindow = 128 << 20

// compressionOf says how a layer is compressed, by its media type. It refuses types that are no layers.
func compressionOf(d v1.Descriptor) (compression, error) {
	switch d.MediaType {
	case types.OCIUncompressedLayer, types.OCIUncompressedRestrictedLayer, types.DockerUncompressedLayer:
		return uncompressed, nil
	case types.OCILayer, types.OCIRestrictedLayer, types.DockerLayer, types.DockerForeignLayer:
		return gzipped, nil
	case types.OCILayerZStd, "application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return zstandard, nil
	}
	return 0, spore.Invalidf("image", "layer %s is of the unknown type %q", d.Digest, d.MediaType).
		WithHint("layers must be tar archives: uncompressed, gzip or zstd")
}

// openLayer opens a kept layer and uncompresses it, a little ahead of the reader.
func (b *blobStore) openLayer(d v1.Descriptor, progress func(int64)) (io.ReadCloser, error) {
	f, err := b.open(d.Digest)
	if err != nil {
		return nil, err
	}
	kind, err := compressionOf(d)
	if err != nil {
		f.Close()
		return nil, err
	}
	counted := &countingReader{f, progress}
	var src io.Reader
	closers := []func(){func() { f.Close() }}
	switch kind {
	case uncompressed:
		src = counted
	case gzipped:
		var z *gzip.Reader
		if z, err = gzip.NewReader(counted); err == nil {
			src = z
		}
	case zstandard:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(counted, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow)); err == nil {
			src = z
			closers = append(closers, z.Close)
		}
	}
	if err != nil {
		f.Close()
		return nil, notDecompressible(d, err)
	}
	return newReadAhead(&layerReader{src, d}, closers), nil
}

// layerReader names the layer in errors of its decompressor.
type layerReader struct {
	io.Reader
	desc v1.Descriptor
}

func (l *layerReader) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = notDecompressible(l.desc, err)
	}
	return n, err
}

func notDecompressible(d v1.Descriptor, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return spore.Errorf(spore.CodeDamaged, "layer %s cannot be decompressed as its type %s says: %w", d.Digest, d.MediaType, err).
		WithHint("the layer is damaged or mislabelled; build and push the image again")
}

type countingReader struct {
	r        io.Reader
	progress func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.progress(int64(n))
	return n, err
}

// readAhead runs a reader in a goroutine of its own, so that what it computes overlaps with what its consumer does.
type readAhead struct {
	full    chan chunk
	free    chan []byte
	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once

	current chunk
	rest    []byte
}

// chunk is what one read gave.
type chunk struct {
	data []byte
	buf  []byte
	err  error
}

const (
	aheadChunks    = 8
	aheadChunkSize = 256 << 10
)

func newReadAhead(r io.Reader, closers []func()) *readAhead {
	a := &readAhead{
		full:    make(chan chunk, aheadChunks),
		free:    make(chan []byte, aheadChunks),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	for range aheadChunks {
		a.free <- make([]byte, aheadChunkSize)
	}
	go func() {
		defer close(a.stopped)
		defer func() {
			for i := len(closers) - 1; i >= 0; i-- {
				closers[i]()
			}
		}()
		for {
			var buf []byte
			select {
			case buf = <-a.free:
			case <-a.stop:
				return
			}
			n, err := io.ReadFull(r, buf)
			if err == io.ErrUnexpectedEOF {
				err = io.EOF // a reader's own early end carries another type
			}
			a.full <- chunk{buf[:n], buf, err} // has room: there are as many slots as buffers
			if err != nil {
				return
			}
		}
	}()
	return a
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.current.err != nil {
			return 0, a.current.err
		}
		if a.current.buf != nil {
			a.free <- a.current.buf
		}
		a.current = <-a.full
		a.rest = a.current.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine and waits for its end. It must not be called during a Read.
func (a *readAhead) Close() error {
	a.once.Do(func() { close(a.stop) })
	<-a.stopped
	return nil
}
