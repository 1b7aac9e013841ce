package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/testbed"
)

// found is a file as a Reader sees it.
type found struct {
	*ext4.Inode
	content, target string
	attrs           []ext4.Xattr
}

// readTree reads everything that a Reader can reach, at most limit files of it.
func readTree(r *ext4.Reader, limit int) (map[string]found, error) {
	out := map[string]found{}
	root, err := r.Root()
	if err != nil {
		return nil, err
	}
	type visit struct {
		path string
		dir  *ext4.Inode
	}
	for todo := []visit{{"", root}}; len(todo) > 0; {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		entries, err := r.ReadDir(v.dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			f := found{}
			path := strings.TrimPrefix(v.path+"/"+e.Name, "/")
			if f.Inode, err = r.Inode(e.Inode); err != nil {
				return nil, err
			}
			if f.attrs, err = r.Xattrs(f.Inode); err != nil {
				return nil, err
			}
			switch f.Type() {
			case ext4.TypeDir:
				todo = append(todo, visit{path, f.Inode})
			case ext4.TypeSymlink:
				f.target, err = r.Target(f.Inode)
			case ext4.TypeRegular:
				f.content, err = contentOf(r, f.Inode)
			}
			if err != nil {
				return nil, err
			}
			if out[path] = f; len(out) > limit {
				return nil, errors.New("too many files")
			}
		}
	}
	return out, nil
}

func contentOf(r *ext4.Reader, i *ext4.Inode) (string, error) {
	extents, err := r.Extents(i)
	if err != nil || i.Size > 16<<20 {
		return "", err
	}
	b := make([]byte, i.Size)
	err = r.Content(extents).Read(b, 0)
	return string(b), err
}

func newReader(t testing.TB, image []byte) *ext4.Reader {
	t.Helper()
	r, err := ext4.NewReader(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// variety is a tree with a file of each kind.
func variety(c content) *ext4.Node {
	root := ext4.NewDir(0o755)
	root.Children["small"] = c.file("hello")
	root.Children["big"] = c.file(strings.Repeat("0123456789abcdef", 9000))
	holes := c.file(strings.Repeat("h", 5*ext4.BlockSize))
	holes.Runs = nil
	for i := range uint32(6) {
		holes.Runs = append(holes.Runs, ext4.Run{Start: 3 * i, Count: 1})
	}
	holes.Size = 20 * ext4.BlockSize
	c[holes] = []byte(strings.Repeat("h", 16*ext4.BlockSize))
	root.Children["holes"] = holes
	root.Children["short"] = &ext4.Node{Mode: ext4.TypeSymlink | 0o777, Target: "small"}
	root.Children["long"] = &ext4.Node{Mode: ext4.TypeSymlink | 0o777, Target: strings.Repeat("x/", 1000)}
	root.Children["null"] = &ext4.Node{Mode: ext4.TypeChar | 0o666, Major: 1, Minor: 3}
	root.Children["white"] = &ext4.Node{Mode: ext4.TypeChar}
	root.Children["far"] = &ext4.Node{Mode: ext4.TypeBlock | 0o600, Major: 259, Minor: 70000}
	sub := ext4.NewDir(0o1777)
	sub.UID, sub.GID = 70000, 1<<31+5
	sub.Xattrs = []ext4.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("y")}, {Name: "user.big", Value: bytes.Repeat([]byte("v"), 1000)}}
	root.Children["sub"] = sub
	for i := range 300 {
		sub.Children[fmt.Sprintf("%d-%s", i, strings.Repeat("n", 60))] = c.file("")
	}
	return root
}

func TestReader(t *testing.T) {
	c := content{}
	path := write(t, variety(c), c)
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readTree(newReader(t, image), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 310 {
		t.Errorf("%d files are found", len(got))
	}
	block := strings.Repeat("h", ext4.BlockSize)
	holes := ""
	for range 6 {
		holes += block + strings.Repeat("\x00", 2*ext4.BlockSize)
	}
	for name, want := range map[string]string{
		"small": "hello", "big": strings.Repeat("0123456789abcdef", 9000), "holes": holes + strings.Repeat("\x00", 2*ext4.BlockSize),
	} {
		if f := got[name]; f.content != want {
			t.Errorf("%s has %d bytes that are not the %d written", name, len(f.content), len(want))
		}
	}
	if got["short"].target != "small" || got["long"].target != strings.Repeat("x/", 1000) {
		t.Errorf("symlinks lead to %q and %q", got["short"].target, got["long"].target)
	}
	if f := got["far"]; f.Major != 259 || f.Minor != 70000 || f.Type() != ext4.TypeBlock {
		t.Errorf("a device is %+v", f.Inode)
	}
	if f := got["white"]; f.Major != 0 || f.Minor != 0 || f.Type() != ext4.TypeChar {
		t.Errorf("a whiteout is %+v", f.Inode)
	}
	sub := got["sub"]
	if sub.Mode != ext4.TypeDir|0o1777 || sub.UID != 70000 || sub.GID != 1<<31+5 || len(sub.attrs) != 2 {
		t.Fatalf("a directory is %+v", sub)
	}
	if a := sub.attrs; a[0].Name != "trusted.overlay.opaque" || string(a[0].Value) != "y" || a[1].Name != "user.big" || len(a[1].Value) != 1000 {
		t.Errorf("its attributes are %+v", a)
	}
}

// TestReaderOfMounted reads the image of a filesystem that a kernel has mounted, as a disk is frozen: most of what was
// done lies in the journal only.
func TestReaderOfMounted(t *testing.T) {
	dir := testbed.MountFS(t, "ext4", 64)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "upper/many"), 0o755))
	for i := range 2000 { // enough for a hash tree of two levels
		must(os.WriteFile(filepath.Join(dir, "upper/many", fmt.Sprintf("%05d-%s", i, strings.Repeat("n", 100))), []byte(fmt.Sprint(i)), 0o644))
	}
	for i := 0; i < 2000; i += 3 {
		must(os.Remove(filepath.Join(dir, "upper/many", fmt.Sprintf("%05d-%s", i, strings.Repeat("n", 100)))))
	}
	big, err := os.Create(filepath.Join(dir, "upper/big"))
	must(err)
	for i := range int64(400) { // more extents than an inode holds
		_, err := big.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), i*8192)
		must(err)
	}
	must(errors.Join(unix.Fallocate(int(big.Fd()), 0, 8<<20, 1<<20), big.Sync(), big.Close()))
	must(unix.Mknod(filepath.Join(dir, "upper/white"), unix.S_IFCHR, 0))
	must(os.Symlink("upper/big", filepath.Join(dir, "link")))
	must(unix.Setxattr(filepath.Join(dir, "upper"), "trusted.overlay.opaque", []byte("y"), 0))
	d, err := os.Open(filepath.Join(dir, "upper"))
	must(err)
	must(unix.Syncfs(int(d.Fd())))
	must(os.WriteFile(filepath.Join(dir, "upper/late"), []byte("late"), 0o600))
	must(os.RemoveAll(filepath.Join(dir, "upper/many/00001-"+strings.Repeat("n", 100))))
	late, err := os.Open(filepath.Join(dir, "upper/late"))
	must(err)
	must(errors.Join(late.Sync(), late.Close(), d.Close()))

	image, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "disk"))
	must(err)
	got, err := readTree(newReader(t, image), 10_000)
	must(err)
	want := 0
	must(filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		want++
		name, _ := filepath.Rel(dir, path)
		f, ok := got[name]
		if !ok {
			return fmt.Errorf("%s is not found", name)
		}
		if e.Type().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil || string(text) != f.content {
				return fmt.Errorf("%s has %d bytes that are not its %d (%w)", name, len(f.content), len(text), err)
			}
		}
		return nil
	}))
	if len(got) != want {
		t.Errorf("%d files are found, there are %d", len(got), want)
	}
	if f := got["upper"]; len(f.attrs) != 1 || string(f.attrs[0].Value) != "y" {
		t.Errorf("attributes %+v", f.attrs)
	}
	if got["link"].target != "upper/big" || got["upper/late"].Mode != ext4.TypeRegular|0o600 {
		t.Errorf("%+v, %+v", got["link"], got["upper/late"].Inode)
	}

	clean := bytes.Clone(image) // as if there were no journal
	clean[1024+96] &^= 0x4
	if old, err := readTree(newReader(t, clean), 10_000); err == nil && old["upper/late"].Inode != nil {
		t.Error("without its journal the filesystem holds the same: the test proves nothing")
	}
}

// journalTag is a block that a transaction of a journal holds.
type journalTag struct {
	block uint32
	data  []byte
}

// journalBlock makes a block of a journal.
func journalBlock(kind, sequence uint32, words ...uint32) []byte {
	b := make([]byte, ext4.BlockSize)
	for i, w := range append([]uint32{0xc03b3998, kind, sequence}, words...) {
		binary.BigEndian.PutUint32(b[4*i:], w)
	}
	return b
}

// withJournal makes an image whose file "journal" is its journal and holds these blocks, from the second on.
func withJournal(t testing.TB, features uint32, blocks func(image []byte) [][]byte) []byte {
	t.Helper()
	c := content{}
	root := ext4.NewDir(0o755)
	root.Children["a"] = c.file("before")
	root.Children["journal"] = c.file(strings.Repeat("j", 16*ext4.BlockSize))
	image, err := os.ReadFile(write(t, root, c))
	if err != nil {
		t.Fatal(err)
	}
	r := newReader(t, image)
	files, err := readTree(r, 10)
	if err != nil {
		t.Fatal(err)
	}
	extents, err := r.Extents(files["journal"].Inode)
	if err != nil || len(extents) != 1 {
		t.Fatalf("the journal lies in %v, %v", extents, err)
	}
	super := journalBlock(4, 0, ext4.BlockSize, 16, 1, 7, 1, 0, 0, features)
	journal := image[extents[0].At:][:extents[0].Length]
	clear(journal)
	copy(journal, super)
	for i, b := range blocks(image) {
		copy(journal[(i+1)*ext4.BlockSize:], b)
	}
	image[1024+96] |= 0x4
	binary.LittleEndian.PutUint32(image[1024+224:], files["journal"].Number)
	return image
}

// renamed finds the block of the root directory and answers a copy in which the file "a" has another name.
func renamed(t testing.TB, image []byte, name byte) journalTag {
	t.Helper()
	r := newReader(t, image)
	root, err := r.Root()
	if err != nil {
		t.Fatal(err)
	}
	extents, err := r.Extents(root)
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Clone(image[extents[0].At:][:ext4.BlockSize])
	i := bytes.Index(block, []byte{1, 1, 'a'})
	block[i+2] = name
	return journalTag{block: uint32(extents[0].At / ext4.BlockSize), data: block}
}

func TestJournal(t *testing.T) {
	const revoke, last, sameUUID = 5, 8, 2
	transaction := func(sequence uint32, tags ...journalTag) [][]byte {
		words := []uint32{}
		data := [][]byte{}
		for i, tag := range tags {
			flags := uint32(sameUUID)
			if i == len(tags)-1 {
				flags |= last
			}
			words = append(words, tag.block, flags)
			data = append(data, tag.data)
		}
		return append([][]byte{journalBlock(1, sequence, words...)}, data...)
	}
	commit := func(sequence uint32) [][]byte { return [][]byte{journalBlock(2, sequence)} }
	join := func(parts ...[][]byte) (out [][]byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	for name, c := range map[string]struct {
		blocks func(image []byte) [][]byte
		want   string
	}{
		"empty": {func([]byte) [][]byte { return nil }, "a"},
		"one transaction": {func(i []byte) [][]byte {
			return join(transaction(7, renamed(t, i, 'b')), commit(7))
		}, "b"},
		"two": {func(i []byte) [][]byte {
			return join(transaction(7, renamed(t, i, 'b')), commit(7), transaction(8, renamed(t, i, 'c')), commit(8))
		}, "c"},
		"without a commit": {func(i []byte) [][]byte {
			return join(transaction(7, renamed(t, i, 'b')), commit(7), transaction(8, renamed(t, i, 'c')))
		}, "b"},
		"an old one behind": {func(i []byte) [][]byte {
			return join(transaction(7, renamed(t, i, 'b')), commit(7), transaction(3, renamed(t, i, 'c')), commit(3))
		}, "b"},
		"revoked": {func(i []byte) [][]byte {
			tag := renamed(t, i, 'b')
			return join(transaction(7, tag), commit(7), [][]byte{journalBlock(revoke, 8, 20, tag.block)}, commit(8))
		}, "a"},
		"revoked and written again": {func(i []byte) [][]byte {
			tag := renamed(t, i, 'b')
			return join(transaction(7, tag), commit(7), [][]byte{journalBlock(revoke, 8, 20, tag.block)}, commit(8), transaction(9, renamed(t, i, 'd')), commit(9))
		}, "d"},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := readTree(newReader(t, withJournal(t, 0, c.blocks)), 10)
			if err != nil {
				t.Fatal(err)
			}
			if files[c.want].Inode == nil || len(files) != 3 {
				t.Errorf("the file is not called %s: %v", c.want, files)
			}
		})
	}
}

func TestReaderRefuses(t *testing.T) {
	c := content{}
	root := ext4.NewDir(0o755)
	root.Children["f"] = c.file("text")
	image, err := os.ReadFile(write(t, root, c))
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"nothing":          func([]byte) []byte { return nil },
		"no magic number":  func(b []byte) []byte { b[1024+56] = 0; return b },
		"cut off":          func(b []byte) []byte { return b[:len(b)/2] },
		"unknown features": func(b []byte) []byte { b[1024+97] |= 0x80; return b },
		"huge blocks":      func(b []byte) []byte { b[1024+24] = 7; return b },
		"no inodes":        func(b []byte) []byte { clear(b[1024+40 : 1024+44]); return b },
		"odd inodes":       func(b []byte) []byte { b[1024+88] = 0xff; return b },
		"too many inodes":  func(b []byte) []byte { b[1024+3] = 0xff; return b },
		"no journal":       func(b []byte) []byte { b[1024+96] |= 4; return b },
	} {
		spoilt := spoil(bytes.Clone(image))
		if _, err := ext4.NewReader(bytes.NewReader(spoilt), int64(len(spoilt))); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

// FuzzReader writes to an image at any place, as a hostile guest would, and reads what is left of it.
func FuzzReader(f *testing.F) {
	c := content{}
	plain, err := os.ReadFile(write(f, variety(c), c))
	if err != nil {
		f.Fatal(err)
	}
	journal := withJournal(f, 0, func(image []byte) [][]byte {
		tag := renamed(f, image, 'b')
		return [][]byte{journalBlock(1, 7, tag.block, 8), tag.data, journalBlock(5, 7, 20, 9), journalBlock(2, 7)}
	})
	patch := func(at uint32, value byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, at), value) }
	f.Add(false, []byte{})
	f.Add(true, []byte{})
	f.Add(false, append(patch(1024+24, 0), patch(4096*4+32, 0xff)...))
	f.Add(true, patch(uint32(len(journal)-16*ext4.BlockSize)+47, 0x1f))
	f.Fuzz(func(t *testing.T, journaled bool, patches []byte) {
		image := bytes.Clone(plain)
		if journaled {
			image = bytes.Clone(journal)
		}
		for ; len(patches) >= 5; patches = patches[5:] {
			image[binary.LittleEndian.Uint32(patches)%uint32(len(image))] = patches[4]
		}
		if r, err := ext4.NewReader(bytes.NewReader(image), int64(len(image))); err == nil {
			readTree(r, 1000)
		}
	})
}
