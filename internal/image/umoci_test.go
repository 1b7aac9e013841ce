package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// peerLayers are layers that use most of what tar archives and layers can express.
func peerLayers(t *testing.T) []v1.Layer {
	t.Helper()
	at := time.Unix(1600000000, 123456789)
	reg := func(name, data string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: data, Size: int64(len(data)), Mode: 0o640, Uid: 12, Gid: 70000, ModTime: at}
	}
	dir := func(name string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o1755, Uid: 3, ModTime: at}
	}
	with := func(h *tar.Header, mode int64, records map[string]string) *tar.Header {
		h.Mode, h.PAXRecords = mode, records
		return h
	}
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	all := [][]*tar.Header{
		{
			dir("./"), dir("bin/"), with(reg("bin/su", "su"), 0o4755, nil), with(reg("bin/ping", "ping"), 0o755, map[string]string{"SCHILY.xattr.security.capability": capability}),
			dir("usr/lib"), reg("usr/lib/a", strings.Repeat("a", 9000)), dir("lib/"), reg("lib/old", "old"), dir("gone/"), reg("gone/x", "x"), dir("opaque/"), reg("opaque/hidden", "h"),
			reg("opaque/again", "1"), dir("dev/"), {Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: at},
			{Typeflag: tar.TypeFifo, Name: "dev/pipe", Mode: 0o600, ModTime: at}, {Typeflag: tar.TypeLink, Name: "bin/su2", Linkname: "bin/su"}, reg("caf\xe9", "latin"),
			{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: "/etc/../bin", ModTime: at, Mode: 0o777}, reg("zeros", strings.Repeat("\x00", 300_000)+"end"), reg("file", "f"),
			with(reg("noted", "n"), 0o644, map[string]string{"SCHILY.xattr.user.note": strings.Repeat("note", 300)}),
		},
		{
			{Typeflag: tar.TypeReg, Name: ".wh.gone"}, dir("opaque/"), {Typeflag: tar.TypeReg, Name: "opaque/.wh..wh..opq"}, reg("opaque/again", "2"),
			{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib", ModTime: at, Mode: 0o777}, {Typeflag: tar.TypeLink, Name: "across", Linkname: "usr/lib/a"}, dir("file/"), reg("file/inside", "now a directory"),
		},
		{reg("lib/b", "through the symlink"), reg("usr/lib/a", "replaced"), reg("abs/new", "through another")},
	}
	var layers []v1.Layer
	for _, entries := range all {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range entries {
			h, data := *e, ""
			if h.Typeflag == tar.TypeReg {
				data, h.Linkname = h.Linkname, ""
			}
			if strings.ContainsRune(h.Name, 0xfffd) || strings.Contains(h.Name, "\xe9") {
				h.Format, h.ModTime = tar.FormatGNU, h.ModTime.Truncate(time.Second)
			} else {
				h.Format = tar.FormatPAX
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, gzipLayer(t, buf.Bytes()))
	}
	return layers
}

// describe lists a directory tree with everything that a program in it could tell.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	links := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if name == "/lost+found" {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%q mode %o owner %d:%d", name, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR: // a tool's own writing below moves the time of an implied directory
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d sum %x links %d mtime %d", st.Size, sha256.Sum256(data), st.Nlink, st.Mtim.Nano())
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		default:
			line += fmt.Sprintf(" device %d", st.Rdev)
		}
		if first, ok := links[st.Ino]; ok {
			line += " same as " + first
		} else if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			links[st.Ino] = name
		}
		names := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, names); err == nil {
			for x := range strings.SplitSeq(strings.Trim(string(names[:n]), "\x00"), "\x00") {
				value := make([]byte, 8192)
				if n, err := unix.Lgetxattr(path, x, value); err == nil && !strings.HasPrefix(x, "user.umoci") && !strings.HasPrefix(x, "user.rootlesscontainers") {
					line += fmt.Sprintf(" %s=%x", x, value[:n])
				}
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// TestAgreesWithUmoci mounts an artifact, as the lower side of an overlay, and compares it with what a public tool unpacks.
func TestAgreesWithUmoci(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs umoci and root")
	}
	dir := writeLayout(t, map[string]v1.Image{"v1": testImage(t, peerLayers(t)...)})
	bundle := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.CommandContext(context.Background(), umoci, "unpack", "--image", dir+":v1", bundle).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	a := mustBuild(t, openStore(t, Options{}), "oci:"+dir, BuildOptions{}).Artifact
	checkFilesystem(t, a, nil)

	base := t.TempDir()
	mount := func(what, fstype, options, target string) {
		t.Helper()
		if err := os.MkdirAll(target, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mount", "-t", fstype, "-o", options, what, target).CombinedOutput(); err != nil {
			t.Skipf("this machine does not mount %s: %v %s", fstype, err, out)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, 0); err != nil {
				t.Error(err)
			}
		})
	}
	lower, scratch, merged := filepath.Join(base, "lower"), filepath.Join(base, "scratch"), filepath.Join(base, "merged")
	mount(a.Path, "ext4", "ro,loop", lower)
	mount("tmpfs", "tmpfs", "size=8m", scratch)
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(scratch, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := describe(t, filepath.Join(bundle, "rootfs"))
	compare := func(root string) {
		t.Helper()
		got := describe(t, root)
		for _, line := range got {
			if !slices.Contains(want, line) && !strings.HasPrefix(line, `"" `) {
				t.Errorf("Spore has   %s", line)
			}
		}
		for _, line := range want {
			if !slices.Contains(got, line) && !strings.HasPrefix(line, `"" `) {
				t.Errorf("umoci has   %s", line)
			}
		}
	}
	compare(lower)
	mount("overlay", "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, scratch, scratch), merged)
	compare(merged)
	if err := os.WriteFile(filepath.Join(merged, "bin/su"), []byte("changed"), 0o600); err != nil {
		t.Errorf("writing through the overlay: %v", err)
	}
}
