package rootfs_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		fixChecksums(lower)
		fixChecksums(upper)
		tryFlatten(t, lower, upper)
	})
}

// FuzzFlattenEntries does the same with archives that are well-formed: the input chooses entries from a few names, so
// that they meet each other.
func FuzzFlattenEntries(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x10\x21\x32\x43\x54"), []byte("\x05\x16\x27\x38"))
	f.Add([]byte("\x21\x06\x01\x02"), []byte("\x01\x09\x03\x00"))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		tryFlatten(t, tarOf(t, entriesOf(lower)...), tarOf(t, entriesOf(upper)...))
	})
}

// entriesOf makes an entry out of each three bytes: type, path and target.
func entriesOf(data []byte) []*tar.Header {
	names := []string{"a", "a/b", "a/b/c", "d", "d/a", "b", "./a/", "/d/b", ".wh.a", "a/.wh.b", "d/.wh..wh..opq", ".wh..wh..opq", "..", "a/../d", "b/x/y", "."}
	targets := []string{"a", "/a/b", "../d", "b", "/", "..", "d/../a", "nowhere/at/all"}
	var out []*tar.Header
	for ; len(data) >= 3 && len(out) < 64; data = data[3:] {
		h := &tar.Header{Name: names[data[1]%16], Mode: int64(data[1])}
		switch data[0] % 6 {
		case 0, 1:
			h.Typeflag = tar.TypeReg
			h.Linkname = strings.Repeat(string(rune('a'+data[2]%26)), int(data[2])*100)
			h.Size = int64(len(h.Linkname))
		case 2:
			h.Typeflag = tar.TypeDir
		case 3:
			h.Typeflag, h.Linkname = tar.TypeSymlink, targets[data[2]%8]
		case 4:
			h.Typeflag, h.Linkname = tar.TypeLink, names[data[2]%16]
		case 5:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(data[2]), int64(data[1])
		}
		if h.Typeflag != tar.TypeDir {
			h.Name = strings.TrimSuffix(h.Name, "/")
		}
		out = append(out, h)
	}
	return out
}

func fixChecksums(data []byte) {
	for ; len(data) >= 512; data = data[512:] {
		if string(data[257:262]) != "ustar" {
			continue
		}
		copy(data[148:156], "        ")
		sum := 0
		for _, c := range data[:512] {
			sum += int(c)
		}
		copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
}

// TestRandomLayers lets e2fsck judge what becomes of layers that were made up at random.
func TestRandomLayers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	checked := 0
	for range 2000 {
		if checked == 50 {
			break
		}
		var data [][]byte
		for range 3 {
			b := make([]byte, 3*r.IntN(7))
			for i := range b {
				b[i] = byte(r.Uint32())
				if i%3 == 1 && b[i]%16 >= 12 {
					b[i] -= 12 // few of the names that are refused
				}
			}
			data = append(data, tarOf(t, entriesOf(b)...))
		}
		if img := tryFlatten(t, data...); img != nil {
			fsck(t, img)
			checked++
		}
	}
	if checked < 10 {
		t.Errorf("only %d of the random images were acceptable", checked)
	}
}

func fsck(t *testing.T, img []byte) {
	tool, err := exec.LookPath("e2fsck")
	if err != nil {
		if tool = "/usr/sbin/e2fsck"; !exists(tool) {
			t.Skip("e2fsck is not installed")
		}
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, img, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tryFlatten returns the image that layers make, nil if they were refused.
func tryFlatten(t *testing.T, layers ...[]byte) []byte {
	limits := rootfs.Limits{LayerBytes: 1 << 20, TotalBytes: 3 << 20, Entries: 1000, MetadataBytes: 1 << 18}
	tree, err := flatten(limits, layers...)
	if err != nil {
		if spore.CodeOf(err) != spore.CodeInvalid {
			t.Fatalf("untyped error: %v", err)
		}
		return nil
	}
	checkTree(t, tree)
	img, layout, err := image(tree, layers...)
	var refused *ext4.Error
	if errors.As(err, &refused) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(img)) != layout.Size() || layout.Size() > 16<<20 {
		t.Fatalf("an image of %d bytes", len(img))
	}
	return img
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
