package foreign

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// The test's own program is also the one without rights.
func TestMain(m *testing.M) {
	if path := os.Getenv("SPORE_FOREIGN_OPEN"); path != "" {
		f, _, err := Open(path, os.Getenv("SPORE_FOREIGN_READONLY") != "")
		if err == nil {
			err = f.Close()
		}
		fmt.Printf("%s|%v", spore.CodeOf(err), err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func file(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

// refused looks whether Open and Size name the field and answer with a code.
func refused(t *testing.T, what, path string, readOnly bool, want spore.Code) {
	t.Helper()
	f, _, err := Open(path, readOnly)
	if err == nil {
		f.Close()
	}
	var e *spore.Error
	if !errors.As(err, &e) || e.Code != want || e.Field != Field || !strings.Contains(e.Message, path) {
		t.Errorf("%s: %v; want code %s", what, err, want)
	}
}

func TestOpen(t *testing.T) {
	path := file(t, 1<<20)
	for _, readOnly := range []bool{false, true} {
		f, size, err := Open(path, readOnly)
		must(t, err)
		if _, err := f.WriteAt([]byte("x"), 0); (err == nil) == readOnly || size != 1<<20 {
			t.Errorf("read-only %v: size %d, write %v", readOnly, size, err)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("flags %#x, %v", flags, err)
		}
		must(t, f.Close())
	}
	if size, err := Size(path); size != 1<<20 || err != nil {
		t.Error(size, err)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	must(t, err)
	defer l.Close()
	loop := filepath.Join(dir, "loop")
	must(t, os.Symlink(loop, loop))
	for name, tc := range map[string]struct {
		path string
		code spore.Code
	}{
		"missing":           {filepath.Join(dir, "missing"), spore.CodeNotFound},
		"under a file":      {filepath.Join(file(t, 512), "x"), spore.CodeNotFound},
		"directory":         {dir, spore.CodeInvalid},
		"named pipe":        {fifo, spore.CodeInvalid},
		"socket":            {socket, spore.CodeInvalid},
		"character device":  {"/dev/null", spore.CodeInvalid},
		"symlink to itself": {loop, spore.CodeInvalid},
		"empty":             {file(t, 0), spore.CodeInvalid},
		"half a sector":     {file(t, 1000), spore.CodeInvalid},
	} {
		refused(t, name, tc.path, false, tc.code)
		refused(t, name, tc.path, true, tc.code)
	}
}

func TestSomebodyWrites(t *testing.T) {
	path := file(t, 4096)
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	refused(t, "somebody writes it", path, false, spore.CodeInUse)
	refused(t, "somebody writes it", path, true, spore.CodeInUse)
	must(t, w.Close())
	r, err := os.Open(path) // a reader is nobody's harm
	must(t, err)
	defer r.Close()
	first, _, err := Open(path, false)
	must(t, err)
	refused(t, "second", path, false, spore.CodeInUse)
	must(t, first.Close())
	again, _, err := Open(path, false)
	must(t, err)
	must(t, again.Close())
}

func TestNoRight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the test gives up rights, which takes root")
	}
	self, err := os.Executable()
	must(t, err)
	dir, err := os.MkdirTemp("/tmp", "foreign") // others can get there
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	program := filepath.Join(dir, "program")
	text, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(program, text, 0o755))
	for mode, want := range map[os.FileMode][2]spore.Code{
		0o600: {spore.CodeInvalid, spore.CodeInvalid}, 0o644: {spore.CodeInvalid, ""}, 0o666: {"", ""},
	} {
		path := filepath.Join(dir, fmt.Sprintf("disk%o", mode))
		must(t, os.WriteFile(path, make([]byte, 512), 0o600))
		must(t, os.Chmod(path, mode))
		for i, readOnly := range []string{"", "1"} {
			cmd := exec.Command(program)
			cmd.Env = []string{"SPORE_FOREIGN_OPEN=" + path, "SPORE_FOREIGN_READONLY=" + readOnly}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			out, err := cmd.CombinedOutput()
			if code, _, _ := strings.Cut(string(out), "|"); err != nil || spore.Code(code) != want[i] {
				t.Errorf("mode %o, read-only %q: %s (%v); want %q", mode, readOnly, out, err, want[i])
			}
		}
	}
}

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file(t, size)).Output()
	if err != nil {
		t.Skipf("this machine has no loop devices for the test: %v", err)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return path
}

func TestBlockDevice(t *testing.T) {
	path := loopDevice(t, 1<<20)
	f, size, err := Open(path, false)
	must(t, err)
	if _, err := f.WriteAt([]byte("guest"), 512); err != nil || size != 1<<20 {
		t.Error(size, err)
	}
	refused(t, "a claimed device", path, false, spore.CodeInUse)
	if err := unix.Mount(path, t.TempDir(), "ext4", 0, ""); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mount of a claimed device: %v", err)
	}
	must(t, f.Close())
	one, _, err := Open(path, true)
	must(t, err)
	two, _, err := Open(path, true)
	must(t, err)
	must(t, errors.Join(one.Close(), two.Close()))

	if out, err := exec.Command("mkfs.ext4", "-q", path).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	at := t.TempDir()
	must(t, unix.Mount(path, at, "ext4", 0, ""))
	refused(t, "a mounted device", path, false, spore.CodeInUse)
	must(t, unix.Unmount(at, 0))
	again, _, err := Open(path, false)
	must(t, err)
	must(t, again.Close())
}
