package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
)

// files describes a tree by path. Directories are made as they are needed; a trailing slash makes an empty one.
type files map[string]any

// entry is a file that is not simply one with contents.
type entry struct {
	text   string
	mode   uint16
	uid    uint32
	target string
	white  bool // a whiteout
	attrs  []ext4.Xattr
}

func attr(name, value string) []ext4.Xattr {
	return []ext4.Xattr{{Name: "trusted.overlay." + name, Value: []byte(value)}}
}

// image writes a filesystem with these files.
func (f files) image(t testing.TB) []byte {
	t.Helper()
	root := ext4.NewDir(0o755)
	texts := map[*ext4.Node]string{}
	for n, path := range slices.Sorted(mapKeys(f)) {
		at := root
		parts := strings.Split(path, "/")
		for _, dir := range parts[:len(parts)-1] {
			if at.Children[dir] == nil {
				at.Children[dir] = ext4.NewDir(0o755)
			}
			at = at.Children[dir]
		}
		e, ok := f[path].(entry)
		if !ok {
			e.text, _ = f[path].(string)
		}
		name := parts[len(parts)-1]
		if name == "" {
			at.Xattrs, at.UID = e.attrs, e.uid
			if e.mode != 0 {
				at.Mode = ext4.TypeDir | e.mode
			}
			continue
		}
		node := &ext4.Node{Mode: ext4.TypeRegular | 0o644, UID: e.uid, Size: int64(len(e.text)), Order: uint64(n), Xattrs: e.attrs, Target: e.target}
		switch {
		case e.white:
			node.Mode = ext4.TypeChar
		case e.target != "":
			node.Mode = ext4.TypeSymlink | 0o777
		case e.mode != 0:
			node.Mode = ext4.TypeRegular | e.mode
		}
		if len(e.text) > 0 {
			node.Runs = []ext4.Run{{Count: uint32((len(e.text) + ext4.BlockSize - 1) / ext4.BlockSize)}}
			texts[node] = e.text
		}
		at.Children[name] = node
	}
	layout, err := ext4.Plan(root, ext4.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var meta bytes.Buffer
	if err := layout.WriteMeta(&meta); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, layout.Size())
	copy(out, meta.Bytes())
	for node, text := range texts {
		at, _ := node.Locate(0)
		copy(out[at:], text)
	}
	return out
}

func mapKeys(f files) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range f {
			if !yield(k) {
				return
			}
		}
	}
}

func open(artifact string, lower, disk []byte) (*Tree, error) {
	l, err := ext4.NewReader(bytes.NewReader(lower), int64(len(lower)))
	if err != nil {
		return nil, err
	}
	d, err := ext4.NewReader(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		return nil, err
	}
	return Open(artifact, l, d)
}

func compare(t testing.TB, artifacts [2]string, lower, disks [2]files, limit int) ([]string, int) {
	t.Helper()
	var trees [2]*Tree
	for i := range trees {
		var err error
		if trees[i], err = open(artifacts[i], lower[i].image(t), disks[i].image(t)); err != nil {
			t.Fatal(err)
		}
	}
	whole := []Range{{0, 1 << 40}}
	c, err := Compare(t.Context(), trees[0], trees[1], Options{Disk: whole, Limit: limit, MaxBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, f := range c.Files {
		line := fmt.Sprintf("%s %s %d %d", f.Kind, f.Path, f.SizeFrom, f.SizeTo)
		if f.Directory {
			line += " directory"
		}
		out = append(out, line)
	}
	return out, c.Omitted
}

var lower = files{
	"etc/conf": "old", "etc/passwd": "root", "bin/sh": entry{text: "shell", mode: 0o755}, "lib": entry{target: "usr/lib"},
	"usr/share/doc/a": "a", "usr/share/doc/b": "b", "usr/lib/x": strings.Repeat("x", 10000), "empty/": nil,
}

func TestCompare(t *testing.T) {
	big := strings.Repeat("0123456789", 100_000)
	for name, c := range map[string]struct {
		from, to files
		want     []string
	}{
		"nothing": {files{}, files{"upper/": nil}, []string{}},
		"added": {
			files{"upper/": nil},
			files{"upper/etc/new": "hello", "upper/srv/deep/file": "abc", "upper/srv/link": entry{target: "deep"}},
			[]string{"added /etc/new 0 5", "added /srv 0 0 directory", "added /srv/deep 0 0 directory", "added /srv/deep/file 0 3", "added /srv/link 0 0"},
		},
		"removed from the artifact": {
			files{},
			files{"upper/etc/conf": entry{white: true}, "upper/usr/share": entry{white: true}},
			[]string{"removed /etc/conf 3 0", "removed /usr/share 0 0 directory", "removed /usr/share/doc 0 0 directory",
				"removed /usr/share/doc/a 1 0", "removed /usr/share/doc/b 1 0"},
		},
		"back again": {
			files{"upper/etc/conf": entry{white: true}, "upper/etc/extra": "e"},
			files{"upper/etc/conf": "old"},
			[]string{"added /etc/conf 0 3", "removed /etc/extra 1 0"},
		},
		"gone on one side, so that the artifact's shows": {
			files{"upper/etc/conf": "newer"}, files{"upper/": nil}, []string{"modified /etc/conf 5 3"},
		},
		"modified": {
			files{"upper/etc/conf": "old", "upper/big": big, "upper/mode": entry{text: "m", mode: 0o600}, "upper/owner": "o", "upper/link": entry{target: "a"}, "upper/same": "s"},
			files{"upper/etc/conf": "NEW", "upper/big": big[:999_999] + "x", "upper/mode": entry{text: "m", mode: 0o700}, "upper/owner": entry{text: "o", uid: 7}, "upper/link": entry{target: "b"}, "upper/same": "s"},
			[]string{"modified /big 1000000 1000000", "modified /etc/conf 3 3", "modified /link 0 0", "modified /mode 1 1", "modified /owner 1 1"},
		},
		"copied up and not changed": {files{}, files{"upper/usr/lib/x": strings.Repeat("x", 10000), "upper/etc/passwd": "root"}, []string{}},
		"file and directory":        {files{"upper/srv": "file"}, files{"upper/srv/a": "A"}, []string{"removed /srv 4 0", "added /srv 0 0 directory", "added /srv/a 0 1"}},
		"owner of a directory":      {files{}, files{"upper/etc/": entry{uid: 5}}, []string{"modified /etc 0 0 directory"}},
		"opaque": {
			files{}, files{"upper/usr/share/doc/": entry{attrs: attr("opaque", "y")}, "upper/usr/share/doc/c": "c"},
			[]string{"removed /usr/share/doc/a 1 0", "removed /usr/share/doc/b 1 0", "added /usr/share/doc/c 0 1"},
		},
		"moved": {
			files{},
			files{"upper/usr/share/": nil, "upper/usr/share/doc": entry{white: true}, "upper/usr/share/text/": entry{attrs: attr("redirect", "doc")}},
			[]string{"removed /usr/share/doc 0 0 directory", "removed /usr/share/doc/a 1 0", "removed /usr/share/doc/b 1 0",
				"added /usr/share/text 0 0 directory", "added /usr/share/text/a 0 1", "added /usr/share/text/b 0 1"},
		},
		"moved far": {
			files{},
			files{"upper/usr/share/doc": entry{white: true}, "upper/doc/": entry{attrs: attr("redirect", "/usr/share/doc")}, "upper/doc/a": "changed"},
			[]string{"added /doc 0 0 directory", "added /doc/a 0 7", "added /doc/b 0 1",
				"removed /usr/share/doc 0 0 directory", "removed /usr/share/doc/a 1 0", "removed /usr/share/doc/b 1 0"},
		},
		"whiteout by attribute": {files{}, files{"upper/etc/conf": entry{attrs: attr("whiteout", "y")}}, []string{"removed /etc/conf 3 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, omitted := compare(t, [2]string{"rfs-1", "rfs-1"}, [2]files{lower, lower}, [2]files{c.from, c.to}, 100)
			if diff := cmp.Diff(c.want, got); diff != "" || omitted != 0 {
				t.Errorf("%d omitted, %s", omitted, diff)
			}
			some, omitted := compare(t, [2]string{"rfs-1", "rfs-1"}, [2]files{lower, lower}, [2]files{c.from, c.to}, 1)
			if len(some)+omitted != len(c.want) || len(some) > 1 {
				t.Errorf("with a limit of one: %q and %d more", some, omitted)
			}
		})
	}
	t.Run("other artifact", func(t *testing.T) {
		other := files{"etc/conf": "old", "etc/passwd": "root", "bin/sh": entry{text: "SHELL", mode: 0o755}, "usr/lib/y": "y", "lib": entry{target: "usr/lib"}}
		got, _ := compare(t, [2]string{"rfs-1", "rfs-2"}, [2]files{lower, other}, [2]files{{"upper/usr/share": entry{white: true}}, {}}, 100)
		want := []string{"modified /bin/sh 5 5", "removed /empty 0 0 directory", "removed /usr/lib/x 10000 0", "added /usr/lib/y 0 1"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestUntouched compares files whose blocks are said to be equal: they are not read.
func TestUntouched(t *testing.T) {
	a, b := files{"upper/f": "one"}.image(t), files{"upper/f": "two"}.image(t)
	low := lower.image(t)
	for _, c := range []struct {
		disk []Range
		want int
	}{{nil, 0}, {[]Range{{0, 4096}}, 0}, {[]Range{{0, int64(len(a))}}, 1}} {
		from, err := open("rfs-1", low, a)
		if err != nil {
			t.Fatal(err)
		}
		to, err := open("rfs-1", low, b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Compare(t.Context(), from, to, Options{Disk: c.disk, Limit: 9, MaxBytes: 1 << 20})
		if err != nil || len(got.Files) != c.want {
			t.Errorf("with changes in %v: %+v, %v", c.disk, got, err)
		}
	}
}

func TestCompareStops(t *testing.T) {
	low := lower.image(t)
	disk := files{"upper/etc/conf": "123", "upper/a": strings.Repeat("a", 1<<20)}.image(t)
	other := files{"upper/etc/conf": "124", "upper/a": strings.Repeat("a", 1<<20)}.image(t)
	run := func(ctx context.Context, max int64) error {
		from, err := open("rfs-1", low, disk)
		if err != nil {
			t.Fatal(err)
		}
		to, err := open("rfs-1", low, other)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Compare(ctx, from, to, Options{Disk: []Range{{0, 1 << 30}}, Limit: 9, MaxBytes: max})
		return err
	}
	if err := run(t.Context(), 1<<20); err == nil {
		t.Error("more was read than there may be")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ended, 1<<30); spore.CodeOf(err) != spore.CodeCanceled {
		t.Errorf("after its context has ended: %v", err)
	}
}

// FuzzCompare writes to a disk as a hostile guest would, at any place.
func FuzzCompare(f *testing.F) {
	low := lower.image(f)
	disk := files{
		"upper/etc/conf": "new", "upper/gone": entry{white: true}, "upper/usr/share/": entry{attrs: attr("redirect", "/usr/share/doc")},
		"upper/bin/": entry{attrs: attr("opaque", "y")}, "upper/link": entry{target: strings.Repeat("t", 100)},
	}.image(f)
	f.Add([]byte{})
	patch := func(at uint32, value byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, at), value) }
	f.Add(patch(1024+56, 0))
	f.Add(slices.Concat(patch(4096*5, 1), patch(4096*6+4, 255)))
	f.Fuzz(func(t *testing.T, patches []byte) {
		mine := bytes.Clone(disk)
		for ; len(patches) >= 5; patches = patches[5:] {
			mine[binary.LittleEndian.Uint32(patches)%uint32(len(mine))] = patches[4]
		}
		from, err := open("rfs-1", low, disk)
		if err != nil {
			t.Fatal(err)
		}
		to, err := open("rfs-1", low, mine)
		if err != nil {
			return
		}
		c, err := Compare(t.Context(), from, to, Options{Disk: []Range{{0, 1 << 30}}, Limit: 5, MaxBytes: 1 << 24})
		if err == nil && len(c.Files) > 5 {
			t.Errorf("%d files are listed", len(c.Files))
		}
	})
}
