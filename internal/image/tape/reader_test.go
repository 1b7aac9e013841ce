package tape_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/image/tape"
)

// archive makes a tar archive with the standard library.
func archive(t testing.TB, format tar.Format, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		h.Format = format
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestReaderAgreesWithStandardLibrary(t *testing.T) {
	long := strings.Repeat("directory/", 30) + "file"
	mtime := time.Unix(1700000000, 0)
	for _, tt := range []struct {
		name   string
		format tar.Format
		h      tar.Header
	}{
		{"ustar file", tar.FormatUSTAR, tar.Header{Typeflag: tar.TypeReg, Name: "a/b", Size: 700, Mode: 0o4755, Uid: 7, Gid: 8, ModTime: mtime}},
		{"ustar prefix", tar.FormatUSTAR, tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("p", 120) + "/" + strings.Repeat("n", 90), ModTime: mtime}},
		{"gnu long name", tar.FormatGNU, tar.Header{Typeflag: tar.TypeReg, Name: long, Size: 3, ModTime: mtime}},
		{"gnu long link", tar.FormatGNU, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: long, ModTime: mtime}},
		{"gnu large numbers", tar.FormatGNU, tar.Header{Typeflag: tar.TypeReg, Name: "n", Uid: 1 << 31, Gid: 1<<31 + 1, ModTime: time.Unix(-5, 0)}},
		{"pax long name", tar.FormatPAX, tar.Header{Typeflag: tar.TypeLink, Name: long, Linkname: long + "2", ModTime: mtime}},
		{"pax time", tar.FormatPAX, tar.Header{Typeflag: tar.TypeDir, Name: "d/", ModTime: time.Unix(1700000000, 123456789), AccessTime: time.Unix(-3, 250000000)}},
		{"pax not UTF-8", tar.FormatPAX, tar.Header{Typeflag: tar.TypeReg, Name: "caf\xc3\xa9", ModTime: mtime, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b\x00c"}}},
		{"raw name", tar.FormatGNU, tar.Header{Typeflag: tar.TypeReg, Name: "caf\xe9", ModTime: mtime}},
		{"device", tar.FormatUSTAR, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, ModTime: mtime}},
		{"block device", tar.FormatGNU, tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8, Devminor: 300, ModTime: mtime}},
		{"fifo", tar.FormatUSTAR, tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", ModTime: mtime}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := archive(t, tt.format, tt.h, tar.Header{Typeflag: tar.TypeReg, Name: "next", Size: 1})
			r := tape.NewReader(bytes.NewReader(data))
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			want, err := tar.NewReader(bytes.NewReader(data)).Next()
			if err != nil {
				t.Fatal(err)
			}
			if d := difference(h, want); d != "" {
				t.Error(d)
			}
			if h, err := r.Next(); err != nil || h.Name != "next" {
				t.Errorf("second entry: %+v, %v", h, err)
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("end: %v", err)
			}
		})
	}
}

// difference says in what a header differs from the standard library's.
func difference(got *tape.Header, want *tar.Header) string {
	mtime := tape.Time{Sec: want.ModTime.Unix(), Nsec: uint32(want.ModTime.Nanosecond())}
	typ := want.Typeflag
	if typ == tar.TypeCont || typ == tar.TypeGNUSparse {
		typ = tar.TypeReg
	}
	xattrs := map[string]string{}
	for k, v := range want.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && name != "" {
			xattrs[name] = v
		}
	}
	var diffs []string
	check := func(what string, a, b any) {
		if fmt.Sprint(a) != fmt.Sprint(b) {
			diffs = append(diffs, fmt.Sprintf("%s: %v, want %v", what, a, b))
		}
	}
	check("name", got.Name, want.Name)
	check("type", got.Type, typ)
	check("link", got.Linkname, want.Linkname)
	check("uid", int(got.UID), want.Uid)
	check("gid", int(got.GID), want.Gid)
	check("mode", got.Mode, want.Mode)
	check("mtime", got.ModTime, mtime)
	check("xattrs", len(got.Xattrs), len(xattrs))
	for k, v := range xattrs {
		check("xattr "+k, got.Xattrs[k], v)
	}
	if typ == tar.TypeReg {
		check("size", got.Size, want.Size)
	}
	if typ == tar.TypeChar || typ == tar.TypeBlock {
		check("major", got.Major, want.Devmajor)
		check("minor", got.Minor, want.Devminor)
	}
	return strings.Join(diffs, "; ")
}

func TestSparseFilesOfGNUTar(t *testing.T) {
	tarTool, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	const size = 3 << 40 // reading this as zeros would take hours
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[int64]string{}
	for i := range int64(30) { // more than the header itself has room for
		offset := i * (100 << 30)
		if i%2 == 0 {
			offset += 4096 * i
		}
		text := fmt.Sprintf("stretch %d", i)
		if _, err := f.WriteAt([]byte(text), offset); err != nil {
			t.Fatal(err)
		}
		want[offset] = text
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"gnu":     {"--format=gnu"},
		"pax 0.0": {"--format=posix", "--sparse-version=0.0"},
		"pax 0.1": {"--format=posix", "--sparse-version=0.1"},
		"pax 1.0": {"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(tarTool, append(args, "--sparse", "-C", dir, "-cf", "-", "sparse")...)
			data, err := cmd.Output()
			if err != nil {
				t.Skipf("this tar cannot: %v", err)
			}
			r := tape.NewReader(bytes.NewReader(data))
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if h.Name != "sparse" || h.Size != size || h.Type != tape.TypeReg {
				t.Fatalf("header: %+v", h)
			}
			found := map[int64]string{}
			var stored int64
			err = r.Data(func(offset int64, p []byte) error {
				stored += int64(len(p))
				for at, text := range want {
					if at >= offset && at+int64(len(text)) <= offset+int64(len(p)) {
						found[at] = string(p[at-offset:][:len(text)])
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if stored > 1<<20 {
				t.Errorf("%d bytes came out of the archive", stored)
			}
			for at, text := range want {
				if found[at] != text {
					t.Errorf("at %d: %q, want %q", at, found[at], text)
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("end: %v", err)
			}
		})
	}
}

func TestDamagedArchives(t *testing.T) {
	good := archive(t, tar.FormatPAX, tar.Header{Typeflag: tar.TypeReg, Name: "file", Size: 1000, PAXRecords: map[string]string{"X.a": "b"}})
	flipped := bytes.Clone(good)
	flipped[100] ^= 1
	huge := bytes.Clone(good[:512])
	for i := range huge[124:136] {
		huge[124+i] = '7'
	}
	for name, data := range map[string][]byte{
		"flipped bit": flipped, "cut in header": good[:300], "cut in PAX": good[:700], "cut in data": good[:1700],
		"cut before data": good[:1024], "noise": bytes.Repeat([]byte("noise"), 400), "huge PAX header": huge,
	} {
		t.Run(name, func(t *testing.T) {
			r := tape.NewReader(bytes.NewReader(data))
			var err error
			for err == nil {
				_, err = r.Next()
			}
			if !errors.Is(err, tape.ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func TestArchiveWithoutEnd(t *testing.T) {
	whole := archive(t, tar.FormatPAX, tar.Header{Typeflag: tar.TypeReg, Name: "file", Size: 1000})
	for _, size := range []int{512 + 1000, 512 + 1024} {
		r := tape.NewReader(bytes.NewReader(whole[:size]))
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("an archive that ends after %d bytes: %v, want the end", size, err)
		}
	}
	r := tape.NewReader(bytes.NewReader(whole[:512+1010]))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an archive that ends within the padding: %v", err)
	}
}

func TestDataOfSkippedEntries(t *testing.T) {
	data := archive(t, tar.FormatGNU,
		tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 300_000},
		tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 5})
	r := tape.NewReader(bytes.NewReader(data))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	if err := r.Data(func(int64, []byte) error { return stop }); err != stop {
		t.Fatal(err)
	}
	if h, err := r.Next(); err != nil || h.Name != "b" {
		t.Fatalf("%+v, %v", h, err)
	}
	var got []byte
	if err := r.Data(func(_ int64, p []byte) error { got = append(got, p...); return nil }); err != nil || string(got) != "xxxxx" {
		t.Errorf("%q, %v", got, err)
	}
}
