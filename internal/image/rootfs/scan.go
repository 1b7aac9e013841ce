// Package rootfs flattens the layers of an image into one tree of files, and fills the image file that package ext4
// has laid out for it with their content.
//
// Layers are read twice. Scan takes down what a layer says about its files and where they have data, Tree.Apply puts
// layers on top of each other, and once the tree is planned, Fill reads those layers again whose content is still
// visible. Nothing is unpacked on the way, and no path is ever handed to the host's filesystem.
//
// What layers mean is what they mean to a container engine that unpacks each on an overlay of those below it:
//
//   - Whiteouts and opaque marks hide what lower layers have and nothing of their own layer, wherever in it they stand.
//   - A path below a symlink leads to where the symlink points, resolved inside the tree; above the root is the root.
//     Where a directory on the way is missing it is made, and anything else in its place gives way to one.
//   - An entry for a directory where a directory is keeps its content and replaces its owner, mode, times and
//     attributes. In all other cases the new file replaces the old one, whatever both are.
//   - Of several entries with one name in a layer, the last one counts.
package rootfs

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/tape"
)

// Layer is what Scan has found in one layer.
type Layer struct {
	Name    string // for errors; usually the layer's digest
	entries []entry
}

// entry is one file of a layer. Its index among the entries is how Fill finds it again.
type entry struct {
	*tape.Header
	runs []ext4.Run // where a regular file has data
}

// Scanner reads the layers of one image and holds the limits that they share. It may scan several at once.
type Scanner struct {
	limits Limits
	budget budget
}

// NewScanner returns a Scanner for one image.
func NewScanner(limits Limits) *Scanner {
	return &Scanner{limits: limits.WithDefaults()}
}

// Scan reads the uncompressed tar stream of a layer to its very end.
func (s *Scanner) Scan(ctx context.Context, name string, r io.Reader) (*Layer, error) {
	limited := &limitedReader{r: r, layer: name, scanner: s}
	archive := tape.NewReader(limited)
	layer := &Layer{Name: name}
	for {
		if len(layer.entries)%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, readError(name, err)
		}
		if err := s.charge(name, h); err != nil {
			return nil, err
		}
		e := entry{Header: h}
		if h.Type == tape.TypeReg {
			if h.Size > ext4.MaxFileSize {
				return nil, badEntry(name, h.Name, "a size of %d bytes is more than a filesystem can hold", h.Size)
			}
			var finder runFinder
			if err := archive.Data(finder.add); err != nil {
				return nil, readError(name, err)
			}
			e.runs = finder.finish()
		}
		layer.entries = append(layer.entries, e)
	}
	// What follows the archive's end mark belongs to the stream, and so to its digest.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return nil, readError(name, err)
	}
	return layer, nil
}

// charge counts an entry against the limits.
func (s *Scanner) charge(layer string, h *tape.Header) error {
	if len(h.Name) > s.limits.PathLength || len(h.Linkname) > s.limits.PathLength {
		long := h.Name
		if len(long) > 64 {
			long = long[:64] + "..."
		}
		return badEntry(layer, long, "a path is longer than the allowed %d bytes", s.limits.PathLength)
	}
	if s.budget.entries.Add(1) > s.limits.Entries {
		return overLimit(layer, "entries", s.limits.Entries)
	}
	size := int64(len(h.Name) + len(h.Linkname))
	for k, v := range h.Xattrs {
		size += int64(len(k) + len(v))
	}
	if s.budget.metadata.Add(size) > s.limits.MetadataBytes {
		return overLimit(layer, "bytes of metadata", s.limits.MetadataBytes)
	}
	return nil
}

// minHole is the shortest stretch of zero blocks that becomes a hole: shorter ones would only break up extents.
const minHole = 16

var zeroBlock [ext4.BlockSize]byte

// runFinder tells from a file's data which of its blocks must exist. Blocks that hold nothing but zeros need not, if
// enough of them lie together.
type runFinder struct {
	runs  []ext4.Run
	block int64 // the block that dirty speaks of
	dirty bool
	begun bool
}

func (f *runFinder) add(offset int64, p []byte) error {
	for len(p) > 0 {
		block := offset / ext4.BlockSize
		n := min(int64(len(p)), ext4.BlockSize-offset%ext4.BlockSize)
		if f.begun && block != f.block {
			f.flush()
		}
		f.block, f.begun = block, true
		f.dirty = f.dirty || !bytes.Equal(p[:n], zeroBlock[:n])
		p = p[n:]
		offset += n
	}
	return nil
}

func (f *runFinder) flush() {
	if !f.dirty {
		return
	}
	f.dirty = false
	at := uint32(f.block)
	if len(f.runs) > 0 {
		last := &f.runs[len(f.runs)-1]
		if gap := at - (last.Start + last.Count); gap < minHole {
			last.Count += gap + 1
			return
		}
	}
	f.runs = append(f.runs, ext4.Run{Start: at, Count: 1})
}

func (f *runFinder) finish() []ext4.Run {
	if f.begun {
		f.flush()
	}
	return f.runs
}

// clean splits an entry's name into its components. Empty ones and dots vanish, so that "./a", "/a" and "a/" are all
// the same; a name that climbs is refused.
func clean(layer, entry, path string) ([]string, error) {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, badEntry(layer, entry, "the path %q climbs out of the tree", path)
		case len(part) > ext4.MaxName:
			return nil, badEntry(layer, entry, "a name is longer than %d bytes", ext4.MaxName)
		case strings.IndexByte(part, 0) >= 0:
			return nil, badEntry(layer, entry, "a name holds a NUL byte")
		}
		out = append(out, part)
	}
	return out, nil
}
