package rootfs_test

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

type layers [][]*tar.Header

func TestApply(t *testing.T) {
	base := []*tar.Header{dir("d/", 0o755), file("d/a", "A"), file("d/b", "B"), dir("d/sub", 0o700), file("d/sub/c", "C")}
	for _, tt := range []struct {
		name   string
		layers layers
		want   string
	}{
		{"names of every form", layers{{dir("./", 0o700), file("./a", "1"), file("/b", "2"), dir("c///", 0o755), file("c/./d", "3")}},
			"a: 1|b: 2|c/ 755|c/d: 3"},
		{"missing parents", layers{{file("x/y/z", "1")}}, "x/ 755|x/y/ 755|x/y/z: 1"},
		{"last of duplicates", layers{{file("a", "1"), symlink("a", "x"), file("a", "2"), dir("d", 0o700), file("d/x", "3"), dir("d", 0o711)}},
			"a: 2|d/ 711|d/x: 3"},
		{"whiteout", layers{base, {file("d/.wh.a", "")}}, "d/ 755|d/b: B|d/sub/ 700|d/sub/c: C"},
		{"whiteout of a directory", layers{base, {file("d/.wh.sub", "")}}, "d/ 755|d/a: A|d/b: B"},
		{"whiteout of nothing", layers{base[:2], {file("d/.wh.x", ""), file("no/.wh.x", "")}}, "d/ 755|d/a: A"},
		{"whiteout spares its own layer", layers{base[:3], {file("d/a", "new"), file("d/.wh.a", "")}}, "d/ 755|d/a: new|d/b: B"},
		{"whiteout and directory anew", layers{base, {file("d/sub/n", "N"), file("d/.wh.sub", "")}}, "d/ 755|d/a: A|d/b: B|d/sub/ 755|d/sub/n: N"},
		{"opaque", layers{base, {dir("d", 0o711), file("d/n", "N"), file("d/.wh..wh..opq", "")}}, "d/ 711|d/n: N"},
		{"opaque root", layers{base, {file(".wh..wh..opq", ""), file("n", "N")}}, "n: N"},
		{"opaque keeps later layers", layers{base, {file("d/.wh..wh..opq", "")}, {file("d/z", "Z")}}, "d/ 755|d/z: Z"},
		{"AUFS metadata", layers{{file("a", "1"), dir(".wh..wh.plnk", 0o700), file(".wh..wh.plnk/12.3", ""), file(".wh..wh.aufs", "")}}, "a: 1"},
		{"directory becomes file", layers{base, {file("d", "F")}}, "d: F"},
		{"file becomes directory", layers{{file("d", "F")}, {dir("d", 0o755), file("d/x", "X")}}, "d/ 755|d/x: X"},
		{"file becomes directory unsaid", layers{{file("d", "F")}, {file("d/x", "X")}}, "d/ 755|d/x: X"},
		{"directory becomes symlink", layers{{dir("lib", 0o755), file("lib/a", "A"), dir("usr/lib", 0o755), file("usr/lib/b", "B")},
			{symlink("lib", "usr/lib")}, {file("lib/c", "C"), file("lib/.wh.b", "")}},
			"lib -> usr/lib|usr/ 755|usr/lib/ 755|usr/lib/c: C"},
		{"symlink becomes directory", layers{{symlink("lib", "usr"), file("usr/a", "A")}, {dir("lib", 0o700), file("lib/.wh.a", ""), file("lib/b", "B")}},
			"lib/ 700|lib/b: B|usr/ 755|usr/a: A"},
		{"symlinks stay inside", layers{{symlink("up", "../../.."), symlink("abs", "/etc"), symlink("two", "abs/../x")},
			{file("up/a", "A"), file("abs/passwd", "P"), file("two/y", "Y")}},
			"a: A|abs -> /etc|etc/ 755|etc/passwd: P|two -> abs/../x|up -> ../../..|x/ 755|x/y: Y"},
		{"symlink out of a missing directory", layers{{symlink("l", "/none/../bin")}, {file("l/x", "X")}}, "bin/ 755|bin/x: X|l -> /none/../bin"},
		{"dangling symlink", layers{{symlink("l", "a/b")}, {file("l/f", "F")}}, "a/ 755|a/b/ 755|a/b/f: F|l -> a/b"},
		{"symlink replaced, not followed", layers{{file("t", "T"), symlink("l", "t")}, {file("l", "L")}}, "l: L|t: T"},
		{"hard link", layers{{file("a", "A"), link("b", "a"), link("c", "./b")}}, "a: A|b = a|c = a"},
		{"hard link across layers", layers{{file("a", "A")}, {link("b", "/a")}, {file("a", "new")}}, "a: new|b: A"},
		{"hard link below a symlink", layers{{file("real/a", "A"), symlink("s", "real")}, {link("s/b", "s/a")}}, "real/ 755|real/a: A|real/b = real/a|s -> real"},
		{"hard link to a symlink", layers{{symlink("s", "x"), link("t", "s")}}, "s -> x|t = s"},
		{"hard link to itself", layers{{file("a", "A"), link("a", "a")}}, "a: A"},
		{"devices", layers{{{Typeflag: tar.TypeChar, Name: "n", Mode: 0o666, Devmajor: 1, Devminor: 3},
			{Typeflag: tar.TypeBlock, Name: "s", Mode: 0o660, Devmajor: 8}, {Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}}},
			"n 20666 1:3|p 10600 0:0|s 60660 8:0"},
		{"names that are not UTF-8", layers{{{Typeflag: tar.TypeReg, Name: "caf\xe9", Mode: 0o644, Format: tar.FormatGNU}}}, "caf\xe9: "},
		{"empty", layers{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var data [][]byte
			for _, l := range tt.layers {
				data = append(data, tarOf(t, l...))
			}
			tree, err := flatten(rootfs.Limits{}, data...)
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, tree, data...); got != strings.ReplaceAll(tt.want, "|", "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", got, strings.ReplaceAll(tt.want, "|", "\n"))
			}
		})
	}
}

func TestHostileLayers(t *testing.T) {
	deep := strings.Repeat("d/", 3000)
	for _, tt := range []struct {
		name, want string
		limits     rootfs.Limits
		entries    []*tar.Header
	}{
		{name: "climbing name", want: `layer layer-0, entry "a/../../etc/passwd"`, entries: []*tar.Header{file("a/../../etc/passwd", "x")}},
		{name: "dots", want: "climbs", entries: []*tar.Header{dir("..", 0o777)}},
		{name: "climbing link", want: `entry "l": the path "../../etc/shadow" climbs`, entries: []*tar.Header{link("l", "../../etc/shadow")}},
		{name: "link to nothing", want: `entry "l": hard link to "/etc/shadow", which does not exist`, entries: []*tar.Header{link("l", "/etc/shadow")}},
		{name: "link through a symlink", want: "does not exist", entries: []*tar.Header{symlink("s", "/../../etc"), link("l", "s/shadow")}},
		{name: "link to a directory", want: "hard link to the directory", entries: []*tar.Header{dir("d", 0o755), link("l", "d")}},
		{name: "link to the root", want: "no target", entries: []*tar.Header{link("l", "/")}},
		{name: "whiteout of dots", want: "names no file", entries: []*tar.Header{file("a/.wh...", "")}},
		{name: "whiteout of nothing", want: "names no file", entries: []*tar.Header{file(".wh.", "")}},
		{name: "whiteout as directory", want: "used as a directory", entries: []*tar.Header{file(".wh.a/b", "")}},
		{name: "symlink loop", want: "too many symlinks", entries: []*tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}},
		{name: "root as a file", want: "must be a directory", entries: []*tar.Header{file(".", "")}},
		{name: "empty symlink", want: "target", entries: []*tar.Header{symlink("s", "")}},
		{name: "long name", want: "longer than 255", entries: []*tar.Header{file(strings.Repeat("n", 256), "")}},
		{name: "long path", want: "longer than the allowed 4096", entries: []*tar.Header{file(deep+"f", "")}},
		{name: "many entries", want: "layer layer-0 has more than the allowed 2 entries", limits: rootfs.Limits{Entries: 2}, entries: []*tar.Header{file("a", ""), file("b", ""), file("c", "")}},
		{name: "large layer", want: "more than the allowed 4000 bytes when uncompressed", limits: rootfs.Limits{LayerBytes: 4000}, entries: []*tar.Header{file("a", strings.Repeat("x", 5000))}},
		{name: "large image", want: "in all layers", limits: rootfs.Limits{TotalBytes: 4000}, entries: []*tar.Header{file("a", strings.Repeat("x", 5000))}},
		{name: "much metadata", want: "bytes of metadata", limits: rootfs.Limits{MetadataBytes: 10}, entries: []*tar.Header{symlink("a", "bcdefghijkl")}},
		{name: "device number", want: "out of range", entries: []*tar.Header{{Typeflag: tar.TypeChar, Name: "d", Devmajor: 5000}}},
		{name: "owner", want: "out of range", entries: []*tar.Header{{Typeflag: tar.TypeReg, Name: "d", Uid: 1 << 40}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := flatten(tt.limits, tarOf(t, tt.entries...))
			if spore.CodeOf(err) != spore.CodeInvalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q (%s), want one with %q", err, spore.CodeOf(err), tt.want)
			}
			if err != nil && spore.AsError(err).Hint == "" {
				t.Error("the error has no hint")
			}
		})
	}
}

func TestImpliedDirectoriesAreLimited(t *testing.T) {
	var entries []*tar.Header
	for i := range 150 {
		entries = append(entries, file(fmt.Sprint(i, strings.Repeat("/d", 2000), "/f"), ""))
	}
	_, err := flatten(rootfs.Limits{}, tarOf(t, entries...))
	if spore.CodeOf(err) != spore.CodeInvalid || !strings.Contains(err.Error(), "imply") {
		t.Errorf("error: %v", err)
	}
}

// TestDeepTree makes a tree far deeper than a path can say, by way of symlinks.
func TestDeepTree(t *testing.T) {
	const step = 1000
	entries := []*tar.Header{file(strings.Repeat("d/", step)+"f", ""), symlink("s0", strings.Repeat("d/", step))}
	for i := range 8 {
		entries = append(entries, file(fmt.Sprintf("s%d/%sf", i, strings.Repeat("d/", step)), ""),
			symlink(fmt.Sprintf("s%d", i+1), fmt.Sprintf("s%d/%s", i, strings.Repeat("d/", step))))
	}
	layer := tarOf(t, entries...)
	tree, err := flatten(rootfs.Limits{}, layer)
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := image(tree, layer)
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, img)
}

func TestMetadata(t *testing.T) {
	h := file("f", "data")
	h.Mode, h.Uid, h.Gid = 0o6755, 1000, 70000
	h.ModTime = time.Unix(1700000000, 123456789)
	h.Format = tar.FormatPAX
	h.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability":    "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.note":              "n",
		"SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.com.apple.quarantine":   "q",
	}
	tree, err := flatten(rootfs.Limits{}, tarOf(t, h))
	if err != nil {
		t.Fatal(err)
	}
	n := tree.Root.Children["f"]
	if n.Mode != ext4.TypeRegular|0o6755 || n.UID != 1000 || n.GID != 70000 || n.Mtime != (ext4.Time{Sec: 1700000000, Nsec: 123456789}) {
		t.Errorf("node: %+v", n)
	}
	var names []string
	for _, x := range n.Xattrs {
		names = append(names, fmt.Sprint(x.Name, " ", len(x.Value)))
	}
	if got := strings.Join(names, ", "); got != "security.capability 20, user.note 1" {
		t.Errorf("attributes: %s", got)
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	const zeros = 1 << 20
	data := strings.Repeat("x", 5000) + strings.Repeat("\x00", zeros) + "end"
	layer := tarOf(t, file("f", data), file("z", strings.Repeat("\x00", zeros)), file("short", "a"+strings.Repeat("\x00", 40000)+"b"))
	tree, err := flatten(rootfs.Limits{}, layer)
	if err != nil {
		t.Fatal(err)
	}
	img, layout, err := image(tree, layer)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(read(img, tree.Root.Children["f"])); got != data {
		t.Error("the file reads back differently")
	}
	if got := tree.Root.Children["z"].Runs; len(got) != 0 {
		t.Errorf("a file of zeros has data: %v", got)
	}
	if got := tree.Root.Children["short"].Runs; len(got) != 1 {
		t.Errorf("a short run of zeros breaks a file up: %v", got)
	}
	if layout.Size() > 512<<10 {
		t.Errorf("the image has %d bytes", layout.Size())
	}
}

func TestShadowedContentIsNotWritten(t *testing.T) {
	lower := tarOf(t, file("f", strings.Repeat("secret", 10000)), file("g", "kept"))
	upper := tarOf(t, file("f", "new"))
	tree, err := flatten(rootfs.Limits{}, lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := image(tree, lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(img), "secret") {
		t.Error("content of a replaced file is in the image")
	}
}

// TestHugeSparseFile takes a file of terabytes, as GNU tar stores it, all the way into an image.
func TestHugeSparseFile(t *testing.T) {
	tool, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const far = 2<<40 + 12345
	for at, text := range map[int64]string{0: "begin", far: "middle"} {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(3 << 40); err != nil {
		t.Fatal(err)
	}
	layer, err := exec.Command(tool, "--format=posix", "--sparse", "-C", dir, "-cf", "-", "sparse").Output()
	if err != nil {
		t.Skipf("this tar cannot: %v", err)
	}
	tree, err := flatten(rootfs.Limits{}, layer)
	if err != nil {
		t.Fatal(err)
	}
	img, layout, err := image(tree, layer)
	if err != nil {
		t.Fatal(err)
	}
	n := tree.Root.Children["sparse"]
	if n.Size != 3<<40 || layout.Size() > 1<<20 {
		t.Errorf("a file of %d bytes in an image of %d", n.Size, layout.Size())
	}
	if at, _ := n.Locate(far); at < 0 || string(img[at:at+6]) != "middle" {
		t.Errorf("the data is not at %d", at)
	}
	fsck(t, img)
}
