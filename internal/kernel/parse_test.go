package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"

	"github.com/sporevm/spore"
)

// bzImage makes a header that passes for a kernel of that release.
func bzImage(version string) []byte {
	image := make([]byte, 0x400+len(version)+1)
	binary.LittleEndian.PutUint16(image[offBootFlag:], 0xaa55)
	copy(image[offHeader:], "HdrS")
	binary.LittleEndian.PutUint16(image[offProtocol:], 0x020f)
	binary.LittleEndian.PutUint16(image[offKernelVersion:], 0x200)
	image[offLoadFlags] = loadedHigh
	binary.LittleEndian.PutUint16(image[offXLoadFlags:], xlfKernel64)
	copy(image[0x400:], version)
	return image
}

func TestKernelRelease(t *testing.T) {
	change := func(fn func([]byte)) []byte {
		image := bzImage("6.1.0 (x)")
		fn(image)
		return image
	}
	tests := []struct {
		name  string
		image []byte
		want  string // release, or a part of the error
	}{
		{"debian", bzImage("6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP"), "6.1.0-56-cloud-amd64"},
		{"bare", bzImage("6.18.5"), "6.18.5"},
		{"empty", nil, "empty"},
		{"elf", []byte("\x7fELF\x02\x01\x01"), "ELF"},
		{"arm64", append(make([]byte, 0x38), "ARM\x64\x00"...), "arm64"},
		{"short", bzImage("6.1")[:0x210], "not a bzImage"},
		{"32 bit", change(func(b []byte) { b[offXLoadFlags] = 0 }), "32-bit"},
		{"old protocol", change(func(b []byte) { b[offProtocol] = 3 }), "too old"},
		{"version past the end", change(func(b []byte) { binary.LittleEndian.PutUint16(b[offKernelVersion:], 0xffff) }), "does not say"},
		{"version without end", bzImage("6.1")[:0x403], "readable"},
		{"path in version", bzImage("../../6.1 x"), "readable"},
		{"slash in version", bzImage("6.1/../.. x"), "readable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			release, err := kernelRelease(test.image)
			if err == nil && release != test.want || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("kernelRelease = %q, %v; want %q", release, err, test.want)
			}
			if err != nil && spore.AsError(err).Field != "kernel" {
				t.Errorf("the error names the field %q", spore.AsError(err).Field)
			}
		})
	}
}

func FuzzKernelRelease(f *testing.F) {
	f.Add(bzImage("6.1.0-56-cloud-amd64 (a@b) #1"))
	f.Add(bzImage("6.1")[:0x403])
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, image []byte) {
		release, err := kernelRelease(image)
		if err == nil && (!plausibleRelease(release) || strings.Contains(release, "/")) {
			t.Errorf("release %q", release)
		}
		if err != nil && spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("untyped error: %v", err)
		}
	})
}

func FuzzModulesDep(f *testing.F) {
	f.Add([]byte("kernel/a.ko: kernel/b-c.ko.xz kernel/d.ko\nkernel/d.ko:\n# comment\n"))
	f.Add([]byte("/etc/passwd.ko: x.ko"))
	f.Add([]byte("a.ko"))
	f.Fuzz(func(t *testing.T, data []byte) {
		modules, err := parseModulesDep(data)
		if err != nil && spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("untyped error: %v", err)
		}
		for _, m := range modules {
			if m.name == "" || strings.ContainsAny(m.name, "/\n") || !filepath.IsLocal(m.path) {
				t.Errorf("module %+v", m)
			}
		}
	})
}

func FuzzModinfo(f *testing.F) {
	f.Add(moduleFile("depends=a,b\x00vermagic=6.1 SMP\x00"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if info, err := modinfo(data); err == nil && info == nil {
			panic("neither an answer nor an error")
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"krn-000000000000000000000000","vmlinuz":{"sha256":"x","size":1}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := parseRecord(data); err == nil && !idForm.MatchString(b.ID) {
			t.Errorf("accepted the id %q", b.ID)
		}
	})
}

func FuzzUnpackKernel(f *testing.F) {
	f.Add(tarOf("./boot/vmlinuz-6.1", "./lib/modules/6.1/kernel/a.ko"))
	f.Add(tarOf("./boot/../../etc/vmlinuz-6"))
	f.Add(tarOf("lib/modules/../kernel"))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		// Whatever the answer, nothing may be written elsewhere.
		_, _, err := unpackKernel(bytes.NewReader(data), filepath.Join(base, "in"))
		if err != nil {
			t.Log(err)
		}
		if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
			t.Errorf("written outside: %v, %v", entries, err)
		}
	})
}

func tarOf(names ...string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(name))}); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(name)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func TestUnpackKernelRefusesHostilePackages(t *testing.T) {
	for name, archive := range map[string][]byte{
		"out of the tree": tarOf("./boot/../../vmlinuz-6"),
		"absolute":        tarOf("/boot/vmlinuz-6"),
		"modules outside": tarOf("lib/modules/6/../../../../x.ko"),
		"two kernels":     tarOf("boot/vmlinuz-6", "boot/vmlinuz-7"),
		"cut":             tarOf("boot/vmlinuz-6")[:520],
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := unpackKernel(bytes.NewReader(archive), filepath.Join(t.TempDir(), "in"))
			if spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != "package" {
				t.Errorf("unpackKernel = %v", err)
			}
		})
	}
}

// moduleFile makes an ELF file with nothing in it but a .modinfo section.
func moduleFile(info string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	put := func(values ...any) {
		for _, v := range values {
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	at := uint64(64)
	table := at + uint64(len(info)+len(names))
	put(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), table, uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2))
	b.WriteString(info + names)
	section := func(name, kind uint32, offset, size uint64) {
		put(name, kind, uint64(0), uint64(0), offset, size, uint32(0), uint32(0), uint64(1), uint64(0))
	}
	section(0, 0, 0, 0)
	section(1, 1, at, uint64(len(info)))
	section(10, 3, at+uint64(len(info)), uint64(len(names)))
	return b.Bytes()
}

// moduleDir makes a modules directory in which every required module exists; files overrides or, with nil, removes.
func moduleDir(t *testing.T, files map[string][]byte) string {
	t.Helper()
	all := map[string][]byte{"modules.builtin": []byte("kernel/fs/ext4/ext4.ko\n")}
	for _, name := range required {
		if name != "ext4" {
			all["kernel/"+name+".ko"] = moduleFile("vermagic=6.1.0 SMP\x00depends=\x00")
		}
	}
	for name, data := range files {
		all[name] = data
	}
	dir := t.TempDir()
	for name, data := range all {
		path := filepath.Join(dir, name)
		if data == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func resolveDir(t *testing.T, dir string) ([]string, error) {
	t.Helper()
	tree, err := openModules(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	modules, err := tree.resolve()
	var names []string
	for _, m := range modules {
		names = append(names, m.name)
	}
	return names, err
}

func TestResolve(t *testing.T) {
	plain := moduleFile("vermagic=6.1.0 SMP\x00depends=\x00")
	packed := func(w interface {
		Write([]byte) (int, error)
		Close() error
	}, err error, buf *bytes.Buffer) []byte {
		if err == nil {
			_, err = w.Write(plain)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	var xzBuf, zstBuf, gzBuf bytes.Buffer
	xzw, xzErr := xz.NewWriter(&xzBuf)
	zstw, zstErr := zstd.NewWriter(&zstBuf)

	t.Run("dependencies from the modules", func(t *testing.T) {
		names, err := resolveDir(t, moduleDir(t, map[string][]byte{
			"kernel/virtio_net.ko": moduleFile("vermagic=6.1.0 SMP\x00depends=net-failover\x00"),
			"x/net_failover.ko":    moduleFile("vermagic=6.1.0 SMP\x00depends=failover\x00"),
			"x/failover.ko":        plain,
		}))
		want := []string{"failover", "net_failover", "virtio_net"}
		var got []string
		for _, name := range names {
			if slices.Contains(want, name) {
				got = append(got, name)
			}
		}
		if err != nil || !slices.Equal(got, want) || slices.Contains(names, "ext4") {
			t.Errorf("resolve = %v, %v", names, err)
		}
	})
	t.Run("compressed", func(t *testing.T) {
		dir := moduleDir(t, map[string][]byte{
			"kernel/virtio_blk.ko": nil, "kernel/virtio_blk.ko.xz": packed(xzw, xzErr, &xzBuf),
			"kernel/overlay.ko": nil, "kernel/overlay.ko.zst": packed(zstw, zstErr, &zstBuf),
			"kernel/virtio.ko": nil, "kernel/virtio.ko.gz": packed(gzip.NewWriter(&gzBuf), nil, &gzBuf),
		})
		if names, err := resolveDir(t, dir); err != nil || len(names) != len(required)-1 {
			t.Errorf("resolve = %v, %v", names, err)
		}
	})

	var index strings.Builder
	for _, name := range required {
		index.WriteString("kernel/" + name + ".ko:\n")
	}
	for _, test := range []struct {
		name  string
		files map[string][]byte
		want  string
	}{
		{"missing", map[string][]byte{"kernel/overlay.ko": nil}, "module overlay, which the guest needs, is missing"},
		{"missing dependency", map[string][]byte{"kernel/overlay.ko": moduleFile("depends=exportfs\x00")}, "module exportfs, which module overlay needs, is missing"},
		{"circle", map[string][]byte{"kernel/overlay.ko": moduleFile("depends=a\x00"), "a.ko": moduleFile("depends=overlay\x00")}, "needs itself"},
		{"not a module", map[string][]byte{"kernel/overlay.ko": []byte("text")}, "module overlay: not a kernel module"},
		{"damaged compression", map[string][]byte{"kernel/overlay.ko": nil, "kernel/overlay.ko.xz": []byte("text")}, "cannot read module overlay"},
		{"bad index", map[string][]byte{"modules.dep": []byte("what\n")}, "modules.dep, line 1"},
		{"index out of the tree", map[string][]byte{"modules.dep": []byte("../x.ko:\n")}, "modules.dep, line 1"},
		{"index of what is not there", map[string][]byte{"modules.dep": []byte(index.String()), "kernel/overlay.ko": nil}, "cannot read module overlay"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := resolveDir(t, moduleDir(t, test.files))
			if spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != "modules" || !strings.Contains(err.Error(), test.want) {
				t.Errorf("resolve = %v, want %q", err, test.want)
			}
		})
	}
}

func TestInitramfs(t *testing.T) {
	modules := []loadedModule{{name: "b", data: []byte("second")}, {name: "a", data: []byte("first")}}
	first, err := initramfs([]byte("init"), modules)
	if err != nil {
		t.Fatal(err)
	}
	again, err := initramfs([]byte("init"), modules)
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("the same inputs gave other bytes (%v)", err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	archive, err := d.DecodeAll(first, nil)
	if err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(archive)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range records {
		names = append(names, r.Name)
		if r.MTime != 0 || r.UID != 0 || r.GID != 0 {
			t.Errorf("%s is of another time or owner: %+v", r.Name, r.Info)
		}
	}
	want := []string{"dev", "dev/console", "init", "modules", "modules/b.ko", "modules/a.ko", "modules/order"}
	if !slices.Equal(names, want) {
		t.Errorf("records %v, want %v", names, want)
	}
	order := new(bytes.Buffer)
	if r := records[len(records)-1]; r.FileSize > 0 {
		data := make([]byte, r.FileSize)
		if _, err := r.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		order.Write(data)
	}
	if order.String() != "/modules/b.ko\n/modules/a.ko\n" {
		t.Errorf("order = %q", order)
	}
}
