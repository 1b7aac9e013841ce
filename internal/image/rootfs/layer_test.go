package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// Entries of test layers.

func file(name, data string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), Linkname: data}
}

func dir(name string, mode int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}

func symlink(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func link(name, target string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

// tarOf makes a layer. The content of a regular file is carried in its Linkname.
func tarOf(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := *e
		data := ""
		if h.Typeflag == tar.TypeReg {
			data, h.Linkname = h.Linkname, ""
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// flatten applies layers, each a tar archive, to an empty tree.
func flatten(limits rootfs.Limits, layers ...[]byte) (*rootfs.Tree, error) {
	tree := rootfs.NewTree()
	scanner := rootfs.NewScanner(limits)
	for i, data := range layers {
		l, err := scanner.Scan(context.Background(), fmt.Sprint("layer-", i), bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		if err := tree.Apply(context.Background(), l); err != nil {
			return nil, err
		}
	}
	return tree, nil
}

// image plans a tree and returns its image.
func image(tree *rootfs.Tree, layers ...[]byte) ([]byte, *ext4.Layout, error) {
	layout, err := ext4.Plan(tree.Root, ext4.Options{})
	if err != nil {
		return nil, nil, err
	}
	var meta bytes.Buffer
	if err := layout.WriteMeta(&meta); err != nil {
		return nil, nil, err
	}
	out := &memory{data: append(meta.Bytes(), make([]byte, layout.Size()-int64(meta.Len()))...)}
	contents := tree.Contents(layout)
	for i, data := range layers {
		if !contents.Needed(i) {
			continue
		}
		if err := contents.Fill(context.Background(), i, fmt.Sprint("layer-", i), bytes.NewReader(data), out, func(int64) {}); err != nil {
			return nil, nil, err
		}
	}
	return out.data, layout, contents.FillAdded(out)
}

type memory struct{ data []byte }

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(m.data)) {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(p), at, len(m.data))
	}
	return copy(m.data[at:], p), nil
}

// list describes a tree, one file a line, with the content that the image has for it.
func list(t testing.TB, tree *rootfs.Tree, layers ...[]byte) string {
	t.Helper()
	img, _, err := image(tree, layers...)
	if err != nil {
		t.Fatal(err)
	}
	delete(tree.Root.Children, "lost+found")
	names := map[*ext4.Node]string{}
	var lines []string
	var walk func(path string, n *ext4.Node)
	walk = func(path string, n *ext4.Node) {
		if first, ok := names[n]; ok {
			lines = append(lines, path+" = "+first)
			return
		}
		names[n] = path
		switch n.Type() {
		case ext4.TypeDir:
			lines = append(lines, fmt.Sprintf("%s/ %o", path, n.Mode&0o7777))
			for _, name := range slices.Sorted(maps.Keys(n.Children)) {
				walk(strings.TrimPrefix(path+"/"+name, "./"), n.Children[name])
			}
		case ext4.TypeRegular:
			lines = append(lines, path+": "+string(read(img, n)))
		case ext4.TypeSymlink:
			lines = append(lines, path+" -> "+n.Target)
		default:
			lines = append(lines, fmt.Sprintf("%s %o %d:%d", path, n.Mode, n.Major, n.Minor))
		}
	}
	walk(".", tree.Root)
	return strings.Join(lines[1:], "\n")
}

// read returns a file's content from the image.
func read(img []byte, n *ext4.Node) []byte {
	out := make([]byte, n.Size)
	for off := int64(0); off < n.Size; {
		at, contiguous := n.Locate(off)
		end := min(off+contiguous, n.Size)
		if at >= 0 {
			copy(out[off:end], img[at:])
		}
		off = end
	}
	return out
}
