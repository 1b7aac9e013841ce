package ext4_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/image/ext4"
)

// content is what a test's regular files hold.
type content map[*ext4.Node][]byte

func (c content) file(data string) *ext4.Node {
	n := &ext4.Node{Mode: ext4.TypeRegular | 0o644, Size: int64(len(data)), Order: uint64(len(c))}
	if blocks := (len(data) + ext4.BlockSize - 1) / ext4.BlockSize; blocks > 0 {
		n.Runs = []ext4.Run{{Start: 0, Count: uint32(blocks)}}
	}
	c[n] = []byte(data)
	return n
}

// write plans a tree and writes its image.
func write(t testing.TB, root *ext4.Node, c content) string {
	t.Helper()
	layout, err := ext4.Plan(root, ext4.Options{UUID: [16]byte{1, 2, 3}, HashSeed: [16]byte{4}, Label: "test"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := layout.WriteMeta(f); err != nil {
		t.Fatal(err)
	}
	if at, err := f.Seek(0, 1); err != nil || at != layout.DataOffset() {
		t.Fatalf("metadata ends at %d, not at %d (%v)", at, layout.DataOffset(), err)
	}
	for _, n := range layout.Files() {
		data := c[n]
		for off := int64(0); off < int64(len(data)); {
			at, contiguous := n.Locate(off)
			end := min(off+contiguous, int64(len(data)))
			if at >= 0 {
				if _, err := f.WriteAt(data[off:end], at); err != nil {
					t.Fatal(err)
				}
			}
			off = end
		}
	}
	if err := f.Truncate(layout.Size()); err != nil {
		t.Fatal(err)
	}
	check(t, path)
	return path
}

// tool returns the path of one of e2fsprogs' programs.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// check lets e2fsck judge an image.
func check(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command(tool(t, "e2fsck"), "-fn", path).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

func debugfs(t testing.TB, path, command string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(tool(t, "debugfs"), "-R", command, path)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v\n%s", command, err, stderr.Bytes())
	}
	return string(out)
}

func TestTypesAndContent(t *testing.T) {
	c := content{}
	root := ext4.NewDir(0o755)
	root.Mtime = ext4.Time{Sec: 1700000000, Nsec: 5}
	big := strings.Repeat("0123456789abcdef", 9000)
	root.Children["empty"] = c.file("")
	root.Children["small"] = c.file("hello")
	root.Children["big"] = c.file(big)
	root.Children["again"] = root.Children["big"]
	root.Children["short"] = &ext4.Node{Mode: ext4.TypeSymlink | 0o777, Target: "small"}
	root.Children["long"] = &ext4.Node{Mode: ext4.TypeSymlink | 0o777, Target: strings.Repeat("x/", 1000)}
	root.Children["limit"] = &ext4.Node{Mode: ext4.TypeSymlink | 0o777, Target: strings.Repeat("y", 60)}
	root.Children["null"] = &ext4.Node{Mode: ext4.TypeChar | 0o666, Major: 1, Minor: 3}
	root.Children["far"] = &ext4.Node{Mode: ext4.TypeBlock | 0o600, Major: 259, Minor: 70000}
	root.Children["pipe"] = &ext4.Node{Mode: ext4.TypeFifo | 0o600}
	root.Children["sock"] = &ext4.Node{Mode: ext4.TypeSocket | 0o600}
	root.Children["raw\xff\xfename"] = c.file("bytes")
	sub := ext4.NewDir(0o1777)
	sub.UID, sub.GID = 70000, 1<<31+5
	sub.Mtime = ext4.Time{Sec: 4e9, Nsec: 123456789}
	root.Children["sub"] = sub
	sub.Children["setuid"] = c.file("s")
	sub.Children["setuid"].Mode = ext4.TypeRegular | 0o6755
	image := write(t, root, c)

	for path, want := range map[string]string{"small": "hello", "big": big, "again": big, "empty": "", "sub/setuid": "s"} {
		if got := debugfs(t, image, "cat /"+path); got != want {
			t.Errorf("%s has %d bytes, want %d", path, len(got), len(want))
		}
	}
	for path, want := range map[string][]string{
		"big":        {"Links: 2", "Size: 144000"},
		"short":      {`Fast link dest: "small"`},
		"null":       {"character special", "Device major/minor number: 01:03"},
		"far":        {"block special", "Device major/minor number: 259:70000"},
		"pipe":       {"FIFO"},
		"sub":        {"Mode:  01777", "User: 70000", "Group: -2147483643", "mtime: 0xee6b2800:1d6f3455"},
		"sub/setuid": {"Mode:  06755"},
	} {
		out := debugfs(t, image, "stat /"+path)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s lacks %q:\n%s", path, w, out)
			}
		}
	}
}

func TestBigDirectory(t *testing.T) {
	root, c := ext4.NewDir(0o755), content{}
	dir := ext4.NewDir(0o755)
	root.Children["d"] = dir
	const count = 100_000
	for i := range count {
		n := c.file("")
		dir.Children[fmt.Sprintf("entry number %06d", i)] = n
	}
	subs := ext4.NewDir(0o755)
	root.Children["subs"] = subs
	for i := range 66_000 { // more than a link count can tell
		subs.Children[fmt.Sprint(i)] = ext4.NewDir(0o755)
	}
	image := write(t, root, c)
	if n := strings.Count(debugfs(t, image, "ls -p /d"), "entry number "); n != count {
		t.Errorf("the directory has %d entries, want %d", n, count)
	}
	if out := debugfs(t, image, "stat /subs"); !strings.Contains(out, "Links: 1 ") {
		t.Errorf("link count of a directory with many subdirectories:\n%s", out)
	}
}

func TestHolesAndDeepExtentTrees(t *testing.T) {
	root, c := ext4.NewDir(0o755), content{}
	// Every other block: more extents than two levels of the tree hold.
	const runs = 3000
	n := &ext4.Node{Mode: ext4.TypeRegular | 0o644, Size: 2 * runs * ext4.BlockSize}
	data := make([]byte, n.Size)
	for i := range runs {
		n.Runs = append(n.Runs, ext4.Run{Start: uint32(2 * i), Count: 1})
		copy(data[2*i*ext4.BlockSize:], fmt.Sprintf("block %d", i))
	}
	c[n] = data
	root.Children["striped"] = n
	far := &ext4.Node{Mode: ext4.TypeRegular | 0o644, Size: 5 << 40, Order: 1, Runs: []ext4.Run{{Start: 1 << 30, Count: 1}}}
	root.Children["far"] = far
	huge := &ext4.Node{Mode: ext4.TypeRegular | 0o644, Size: 6 << 30, Order: 2, Runs: []ext4.Run{{Start: 0, Count: 6 << 18}}}
	root.Children["huge"] = huge
	image := write(t, root, c)
	if got := debugfs(t, image, "cat /striped"); got != string(data) {
		t.Error("the striped file reads back differently")
	}
	if out := debugfs(t, image, "stat /far"); !strings.Contains(out, "Size: 5497558138880") || !strings.Contains(out, "(1073741824):") {
		t.Errorf("far: %s", out)
	}
	if out := debugfs(t, image, "stat /huge"); !strings.Contains(out, "Size: 6442450944") {
		t.Errorf("huge: %s", out)
	}
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 7<<30 {
		t.Errorf("the image has %d bytes: holes take up room", st.Size())
	}
}

func TestLocate(t *testing.T) {
	root := ext4.NewDir(0o755)
	n := &ext4.Node{Mode: ext4.TypeRegular, Size: 100 * ext4.BlockSize, Runs: []ext4.Run{{Start: 2, Count: 3}, {Start: 10, Count: 1}}}
	root.Children["f"] = n
	if _, err := ext4.Plan(root, ext4.Options{}); err != nil {
		t.Fatal(err)
	}
	base, _ := n.Locate(2 * ext4.BlockSize)
	for _, tt := range []struct{ offset, at, contiguous int64 }{
		{0, -1, 2 * ext4.BlockSize},
		{2*ext4.BlockSize + 5, base + 5, 3*ext4.BlockSize - 5},
		{5 * ext4.BlockSize, -1, 5 * ext4.BlockSize},
		{10*ext4.BlockSize + 1, base + 3*ext4.BlockSize + 1, ext4.BlockSize - 1},
		{11 * ext4.BlockSize, -1, 89 * ext4.BlockSize},
	} {
		if at, contiguous := n.Locate(tt.offset); at != tt.at || contiguous != tt.contiguous {
			t.Errorf("Locate(%d) = %d, %d, want %d, %d", tt.offset, at, contiguous, tt.at, tt.contiguous)
		}
	}
}

func TestXattrs(t *testing.T) {
	root, c := ext4.NewDir(0o755), content{}
	n := c.file("x")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	n.Xattrs = []ext4.Xattr{
		{Name: "user.b", Value: bytes.Repeat([]byte("v"), 3000)},
		{Name: "security.capability", Value: []byte(capability)},
		{Name: "user.a", Value: nil},
		{Name: "trusted.long", Value: bytes.Repeat([]byte("w"), 200)},
		{Name: "system.posix_acl_access", Value: []byte("\x02\x00\x00\x00" +
			"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
			"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")},
	}
	root.Children["f"] = n
	image := write(t, root, c)
	out := debugfs(t, image, "ea_list /f")
	for _, want := range []string{"security.capability (20)", "user.a (0)", "user.b (3000)", "trusted.long (200)", "system.posix_acl_access (28) = 01 00 00 00 01 00 06 00 02 00 04 00 e8 03"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if got := debugfs(t, image, "ea_get /f security.capability"); !strings.Contains(got, "01 00 00 02 00 20") {
		t.Errorf("capability: %q", got)
	}
}

func TestRefusals(t *testing.T) {
	for name, n := range map[string]*ext4.Node{
		"type":       {Mode: 0o644},
		"size":       {Mode: ext4.TypeRegular, Size: ext4.MaxFileSize + 1},
		"runs":       {Mode: ext4.TypeRegular, Size: 1, Runs: []ext4.Run{{Start: 1, Count: 1}}},
		"overlap":    {Mode: ext4.TypeRegular, Size: 1 << 20, Runs: []ext4.Run{{Start: 1, Count: 2}, {Start: 2, Count: 1}}},
		"target":     {Mode: ext4.TypeSymlink},
		"device":     {Mode: ext4.TypeChar, Major: 1 << 12},
		"attributes": {Mode: ext4.TypeRegular, Xattrs: []ext4.Xattr{{Name: "user.x", Value: make([]byte, 5000)}}},
		"attribute":  {Mode: ext4.TypeSymlink, Target: "x", Xattrs: []ext4.Xattr{{Name: "user.x"}}},
		"ACL":        {Mode: ext4.TypeRegular, Xattrs: []ext4.Xattr{{Name: "system.posix_acl_access", Value: []byte("?")}}},
		"twice":      {Mode: ext4.TypeRegular, Xattrs: []ext4.Xattr{{Name: "user.x"}, {Name: "user.x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			root := ext4.NewDir(0o755)
			root.Children["bad"] = n
			var refused *ext4.Error
			if _, err := ext4.Plan(root, ext4.Options{}); !errors.As(err, &refused) || refused.Path != "bad" {
				t.Errorf("error: %v", err)
			}
		})
	}
	root := ext4.NewDir(0o755)
	root.Children[strings.Repeat("n", 256)] = ext4.NewDir(0)
	if _, err := ext4.Plan(root, ext4.Options{}); err == nil {
		t.Error("an overlong name is accepted")
	}
	root = ext4.NewDir(0o755)
	linked := &ext4.Node{Mode: ext4.TypeFifo}
	for i := range ext4.MaxLinks + 1 {
		root.Children[fmt.Sprint(i)] = linked
	}
	if _, err := ext4.Plan(root, ext4.Options{}); err == nil {
		t.Error("too many links are accepted")
	}
}

func TestLostAndFoundOfTheTree(t *testing.T) {
	for name, n := range map[string]*ext4.Node{"directory": ext4.NewDir(0o711), "symlink": {Mode: ext4.TypeSymlink | 0o777, Target: "elsewhere"}} {
		t.Run(name, func(t *testing.T) {
			root := ext4.NewDir(0o755)
			root.Children["lost+found"] = n
			root.Children["a"] = ext4.NewDir(0o700)
			layout, err := ext4.Plan(root, ext4.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			if err := layout.WriteMeta(&buf); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "image")
			buf.Write(make([]byte, layout.Size()-int64(buf.Len())))
			if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if n.IsDir() {
				check(t, path)
			}
			if out := debugfs(t, path, "stat /lost+found"); n.IsDir() != strings.Contains(out, "Mode:  0711") {
				t.Errorf("%s", out)
			}
		})
	}
}

func TestSameTreeSameBytes(t *testing.T) {
	sum := func() string {
		root, c := ext4.NewDir(0o755), content{}
		for i := range 500 {
			d := ext4.NewDir(0o755)
			root.Children[fmt.Sprint("d", i)] = d
			for j := range 10 {
				d.Children[fmt.Sprint("f", j)] = c.file(fmt.Sprint(i, j))
			}
		}
		data, err := os.ReadFile(write(t, root, c))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.Sum256(data)
		return hex.EncodeToString(h[:])
	}
	if a, b := sum(), sum(); a != b {
		t.Errorf("two images of one tree differ: %s, %s", a, b)
	}
}

// TestMounted lets the kernel read an image that debugfs and e2fsck have approved.
func TestMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root, c := ext4.NewDir(0o755), content{}
	n := c.file("hello")
	n.Mtime = ext4.Time{Sec: -2, Nsec: 500}
	n.Xattrs = []ext4.Xattr{{Name: "user.big", Value: bytes.Repeat([]byte("v"), 2000)}, {Name: "user.small", Value: []byte("s")}}
	root.Children["f"] = n
	root.Children["g"] = n
	far := &ext4.Node{Mode: ext4.TypeRegular | 0o644, Size: 1 << 40, Order: 9, Runs: []ext4.Run{{Start: 1000, Count: 1}}}
	root.Children["far"] = far
	root.Children["link"] = &ext4.Node{Mode: ext4.TypeSymlink | 0o777, Target: strings.Repeat("a", 100)}
	root.Children["dev"] = &ext4.Node{Mode: ext4.TypeChar | 0o600, Major: 300, Minor: 1000}
	image := write(t, root, c)

	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "ext4", "-o", "ro,loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("this machine mounts no ext4 images: %v %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if data, err := os.ReadFile(filepath.Join(dir, "g")); err != nil || string(data) != "hello" {
		t.Errorf("g: %q, %v", data, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "f"), &st); err != nil || st.Mtim.Sec != -2 || st.Mtim.Nsec != 500 || st.Nlink != 2 {
		t.Errorf("f: %+v, %v", st, err)
	}
	if err := unix.Lstat(filepath.Join(dir, "far"), &st); err != nil || st.Size != 1<<40 || st.Blocks != 8 {
		t.Errorf("far: %+v, %v", st, err)
	}
	if err := unix.Lstat(filepath.Join(dir, "dev"), &st); err != nil || unix.Major(st.Rdev) != 300 || unix.Minor(st.Rdev) != 1000 {
		t.Errorf("dev: %+v, %v", st, err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "link")); err != nil || len(target) != 100 {
		t.Errorf("link: %q, %v", target, err)
	}
	for name, size := range map[string]int{"user.big": 2000, "user.small": 1} {
		if n, err := unix.Lgetxattr(filepath.Join(dir, "f"), name, make([]byte, 4096)); err != nil || n != size {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}
