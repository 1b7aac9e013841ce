package rootfs_test

import (
	"archive/tar"
	"context"
	"errors"
	"strings"
	"testing"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// FuzzFlatten applies two arbitrary archives. Whatever they hold, they are refused with a typed error, or make a tree
// that stays inside itself and that ext4 can hold and write.
func FuzzFlatten(f *testing.F) {
	f.Add(tarOf(f, dir("d", 0o755), file("d/a", "A"), symlink("l", "../d"), link("h", "d/a")),
		tarOf(f, file("d/.wh.a", ""), file("l/b", "B"), file("l/.wh..wh..opq", "")))
	f.Add(tarOf(f, symlink("a", "/b/../c"), symlink("b", "a")), tarOf(f, file("a/x", "X"), file("b/y", "Y")))
	f.Add(tarOf(f, file("../../x", "1")), tarOf(f, link("x", "../etc/passwd")))
	f.Add(tarOf(f, file("z", strings.Repeat("\x00", 70000)+"z")), tarOf(f, &tar.Header{Typeflag: tar.TypeFifo, Name: "z/p"}))
	limits := rootfs.Limits{LayerBytes: 1 << 20, TotalBytes: 2 << 20, Entries: 1000, MetadataBytes: 1 << 18}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		tree, err := flatten(limits, lower, upper)
		if err != nil {
			if spore.CodeOf(err) != spore.CodeInvalid && !errors.Is(err, context.Canceled) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		checkTree(t, tree)
		img, layout, err := image(tree, lower, upper)
		var refused *ext4.Error
		if errors.As(err, &refused) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(img)) != layout.Size() || layout.Size() > 16<<20 {
			t.Fatalf("an image of %d bytes", len(img))
		}
	})
}

// checkTree fails if a name could lead anywhere but down, or if a directory has two places.
func checkTree(t *testing.T, tree *rootfs.Tree) {
	seen := map[*ext4.Node]bool{}
	stack := []*ext4.Node{tree.Root}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[d] {
			t.Fatal("a directory has two places")
		}
		seen[d] = true
		for name, n := range d.Children {
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".wh.") {
				t.Fatalf("the tree holds the name %q", name)
			}
			if n.IsDir() {
				stack = append(stack, n)
			}
		}
	}
}
