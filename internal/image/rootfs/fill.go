package rootfs

import (
	"context"
	"fmt"
	"io"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/tape"
)

// Extent is where the content of one layer's files lies in the image file.
type Extent struct {
	Start, End int64
}

// Contents is the plan for the second reading: which files of which layers are still visible.
type Contents struct {
	layers []([]*ext4.Node) // by layer, in the order of the layer's entries
	added  []*ext4.Node
	bytes  map[*ext4.Node][]byte
}

// Contents sorts the files of a planned tree by the layer they come from.
func (t *Tree) Contents(layout *ext4.Layout) *Contents {
	c := &Contents{layers: make([][]*ext4.Node, t.layers), bytes: t.added}
	for _, n := range layout.Files() {
		if _, ok := t.added[n]; ok {
			c.added = append(c.added, n)
			continue
		}
		layer := int(n.Order >> 32)
		c.layers[layer] = append(c.layers[layer], n)
	}
	return c
}

// Needed says whether anything of a layer is visible. If not, there is no reason to read it again.
func (c *Contents) Needed(layer int) bool { return len(c.layers[layer]) > 0 }

// Extent returns where a layer's content goes. The extents of the layers follow each other in their order.
func (c *Contents) Extent(layer int) Extent { return span(c.layers[layer]) }

// Added returns where the content goes that comes from no layer. It follows that of all layers.
func (c *Contents) Added() Extent { return span(c.added) }

func span(nodes []*ext4.Node) Extent {
	if len(nodes) == 0 {
		return Extent{}
	}
	first, last := nodes[0], nodes[len(nodes)-1]
	start, _ := first.Locate(int64(first.Runs[0].Start) * ext4.BlockSize)
	run := last.Runs[len(last.Runs)-1]
	end, _ := last.Locate(int64(run.Start) * ext4.BlockSize)
	return Extent{start, end + int64(run.Count)*ext4.BlockSize}
}

// Fill reads a layer again and writes the content of its visible files to w. It calls progress with the offset up to
// which the layer's extent is complete.
func (c *Contents) Fill(ctx context.Context, layer int, name string, r io.Reader, w io.WriterAt, progress func(int64)) error {
	nodes := c.layers[layer]
	archive := tape.NewReader(r)
	out := newBlockWriter(w, c.Extent(layer).Start, progress)
	for i := 0; len(nodes) > 0; i++ {
		if i%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		_, err := archive.Next()
		if err == io.EOF {
			err = fmt.Errorf("layer %s has become shorter while it was read", name)
		}
		if err != nil {
			return readError(name, err)
		}
		if uint64(i) != nodes[0].Order&0xffffffff {
			continue
		}
		n := nodes[0]
		nodes = nodes[1:]
		err = archive.Data(func(offset int64, p []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return out.writeFile(n, offset, p)
		})
		if err != nil {
			return readError(name, err)
		}
	}
	return out.close(c.Extent(layer).End)
}

// FillAdded writes the content that comes from no layer.
func (c *Contents) FillAdded(w io.WriterAt) error {
	if len(c.added) == 0 {
		return nil
	}
	extent := c.Added()
	out := newBlockWriter(w, extent.Start, func(int64) {})
	for _, n := range c.added {
		if err := out.writeFile(n, 0, c.bytes[n]); err != nil {
			return err
		}
	}
	return out.close(extent.End)
}

// blockWriter gathers the content of files, which lie one behind the other, into large writes.
type blockWriter struct {
	w        io.WriterAt
	buf      []byte
	at       int64 // offset of buf in the image
	progress func(int64)
}

func newBlockWriter(w io.WriterAt, at int64, progress func(int64)) *blockWriter {
	return &blockWriter{w: w, buf: make([]byte, 0, 1<<20), at: at, progress: progress}
}

// writeFile writes p, which belongs at offset of the file n. What falls into a hole is zero, and is dropped.
func (b *blockWriter) writeFile(n *ext4.Node, offset int64, p []byte) error {
	for len(p) > 0 {
		at, contiguous := n.Locate(offset)
		step := min(int64(len(p)), contiguous)
		if step <= 0 {
			return fmt.Errorf("file content at %d lies beyond the file's end", offset)
		}
		if at >= 0 {
			if err := b.write(at, p[:step]); err != nil {
				return err
			}
		}
		p = p[step:]
		offset += step
	}
	return nil
}

func (b *blockWriter) write(at int64, p []byte) error {
	end := b.at + int64(len(b.buf))
	if at < end {
		return fmt.Errorf("content for %d comes after %d was reached", at, end)
	}
	if err := b.zero(at - end); err != nil {
		return err
	}
	for len(p) > 0 {
		if len(b.buf) == cap(b.buf) {
			if err := b.flush(); err != nil {
				return err
			}
		}
		n := copy(b.buf[len(b.buf):cap(b.buf)], p)
		b.buf = b.buf[:len(b.buf)+n]
		p = p[n:]
	}
	return nil
}

// zero fills the rest of a file's last block, and what a sparse archive leaves out of a block.
func (b *blockWriter) zero(n int64) error {
	for n > 0 {
		if len(b.buf) == cap(b.buf) {
			if err := b.flush(); err != nil {
				return err
			}
		}
		step := min(n, int64(cap(b.buf)-len(b.buf)))
		clear(b.buf[len(b.buf) : int64(len(b.buf))+step])
		b.buf = b.buf[:int64(len(b.buf))+step]
		n -= step
	}
	return nil
}

func (b *blockWriter) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	if _, err := b.w.WriteAt(b.buf, b.at); err != nil {
		return err
	}
	b.at += int64(len(b.buf))
	b.buf = b.buf[:0]
	b.progress(b.at)
	return nil
}

// close fills the extent up to its end.
func (b *blockWriter) close(end int64) error {
	if err := b.zero(end - b.at - int64(len(b.buf))); err != nil {
		return err
	}
	return b.flush()
}
