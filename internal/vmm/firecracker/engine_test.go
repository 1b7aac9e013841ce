package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("jails need root")
	}
	if err := checkKVM(); err != nil {
		t.Skipf("Firecracker and its stand-in both want KVM: %v", err)
	}
}

func bootTiny(t testing.TB, e *Engine) (*machine, vmm.Config) {
	t.Helper()
	cfg := tinyConfig(t)
	vm, err := e.Boot(t.Context(), cfg)
	must(t, err)
	killAtEnd(t, vm)
	return vm.(*machine), cfg
}

func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		out[key] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

func readlink(t *testing.T, pid int, name string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, name))
	must(t, err)
	return link
}

func TestProcessIsConfined(t *testing.T) {
	needRoot(t)
	vm, cfg := bootTiny(t, doubleEngine(t, "", nil))
	st := status(t, vm.PID())
	uid := fmt.Sprint(vm.jail.uid)
	if four := strings.Join([]string{uid, uid, uid, uid}, " "); st["Uid"] != four || st["Gid"] != four {
		t.Errorf("Uid %s, Gid %s; want %s", st["Uid"], st["Gid"], uid)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		if strings.Trim(st[set], "0") != "" {
			t.Errorf("%s %s", set, st[set])
		}
	}
	for _, ns := range []string{"ns/mnt", "ns/net"} {
		if readlink(t, vm.PID(), ns) == readlink(t, os.Getpid(), ns) {
			t.Errorf("%s is the server's", ns)
		}
	}
	if sid, err := unix.Getsid(vm.PID()); err != nil || sid != vm.PID() {
		t.Errorf("its session is %d (%v)", sid, err)
	}
	if groups := vm.Cgroups(); len(groups) > 0 {
		procs, err := os.ReadFile(filepath.Join(groups[0], "cgroup.procs"))
		if err != nil || !strings.Contains(string(procs), fmt.Sprint(vm.PID())) {
			t.Errorf("it is not in its cgroup: %q, %v", procs, err)
		}
	}
	commandline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID()))
	must(t, err)
	if strings.Contains(string(commandline), filepath.Dir(cfg.Dir)) {
		t.Errorf("the command line names a path of the host: %q", commandline)
	}
	// It sees its files and nothing else, and what it shall not change it cannot.
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", vm.PID()))
	must(t, err)
	for name, want := range map[string]string{"/drive-rootfs": "ro", "/drive-disk": "rw", "/memory": "rw", "/scratch": "rw"} {
		found := false
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 3 && f[1] == name {
				found = strings.HasPrefix(f[3]+",", want+",")
			}
		}
		if !found {
			t.Errorf("%s is not there as %s:\n%s", name, want, mounts)
		}
	}
	ours, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(ours), filepath.Dir(cfg.Dir)) {
		t.Errorf("the host sees the jail's mounts (%v)", err)
	}
	// Whose files they are has not changed.
	for _, path := range []string{cfg.Memory, cfg.Drives[0].Path, cfg.Drives[1].Path} {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Uid != 0 || st.Mode&0o777 != 0o600 {
			t.Errorf("%s belongs to %d and has mode %o", path, st.Uid, st.Mode&0o777)
		}
	}
}

// nothingLeft checks what a VM leaves behind.
func nothingLeft(t *testing.T, cfg vmm.Config, pid int, cgroups []string) {
	t.Helper()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", pid, err)
	}
	for _, dir := range cgroups {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the cgroup %s was left (%v)", dir, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(cfg.Dir, "firecracker"))
	must(t, err)
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".log") && e.Name() != workRecord {
			t.Errorf("%s was left", e.Name())
		}
	}
}

// A server can end between any two steps of a start.
func TestCleanWithoutRecord(t *testing.T) {
	needRoot(t)
	for name, damage := range map[string]func(path string) error{
		"removed": os.Remove, "torn": func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
	} {
		for _, jailed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, jailed %v", name, jailed), func(t *testing.T) {
				e := doubleEngine(t, "", func(o *Options) { o.NoJailer = !jailed })
				vm, cfg := bootTiny(t, e)
				must(t, vm.Release()) // as a server's end does
				must(t, damage(filepath.Join(cfg.Dir, "firecracker", workRecord)))
				_, err := e.Boot(t.Context(), func() vmm.Config { c := cfg; c.Memory += "2"; return c }())
				if spore.CodeOf(err) != spore.CodeConflict {
					t.Errorf("Boot beside an orphan: %v", err)
				}
				must(t, e.Clean(t.Context(), cfg.Dir))
				<-vm.Done()
				nothingLeft(t, cfg, vm.PID(), vm.jail.cgroup)
			})
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	for name, end := range map[string]func(*testing.T, *Engine, *machine, vmm.Config){
		"kill": func(t *testing.T, e *Engine, vm *machine, cfg vmm.Config) { must(t, vm.Kill(t.Context())) },
		"crash": func(t *testing.T, e *Engine, vm *machine, cfg vmm.Config) {
			must(t, syscall.Kill(vm.PID(), syscall.SIGKILL))
			<-vm.Done()
			if err := vm.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Errorf("the end of the process is told as %v", err)
			}
		},
		"the server's end": func(t *testing.T, e *Engine, vm *machine, cfg vmm.Config) {
			must(t, vm.Release())
			must(t, e.Clean(t.Context(), cfg.Dir))
			<-vm.Done()
		},
		"both at once": func(t *testing.T, e *Engine, vm *machine, cfg vmm.Config) {
			must(t, vm.Release())
			must(t, syscall.Kill(vm.PID(), syscall.SIGKILL))
			<-vm.Done()
			_, err := e.Adopt(t.Context(), cfg)
			if spore.CodeOf(err) != spore.CodeNotFound {
				t.Errorf("Adopt of what has ended: %v", err)
			}
			must(t, e.Clean(t.Context(), cfg.Dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := doubleEngine(t, "", nil)
			vm, cfg := bootTiny(t, e)
			end(t, e, vm, cfg)
			nothingLeft(t, cfg, vm.PID(), vm.jail.cgroup)
		})
	}
}

// A record may outlive its process, and the pid then belong to someone else.
func TestCleanSparesStrangers(t *testing.T) {
	needRoot(t)
	e := doubleEngine(t, "", nil)
	vm, cfg := bootTiny(t, e)
	must(t, vm.Kill(t.Context()))
	path := filepath.Join(cfg.Dir, "firecracker", workRecord)
	text, err := os.ReadFile(path)
	must(t, err)
	own := strings.Replace(string(text), fmt.Sprintf(`"pid":%d`, vm.PID()), fmt.Sprintf(`"pid":%d`, os.Getpid()), 1)
	must(t, os.WriteFile(path, []byte(own), 0o600))
	must(t, e.Clean(t.Context(), cfg.Dir)) // ends this test if it is wrong
	if _, err := e.Adopt(t.Context(), cfg); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("Adopt of a stranger: %v", err)
	}
}

// The first thread of the process must not be left in a jail.
func TestThreadsComeBack(t *testing.T) {
	needRoot(t)
	before := readlink(t, os.Getpid(), "ns/mnt")
	var where string
	for range 200 {
		must(t, thread.Apart(func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if unix.Gettid() == unix.Getpid() {
				return errors.New("this is the first thread")
			}
			return nil
		}))
	}
	runtime.Gosched()
	if where = readlink(t, os.Getpid(), "ns/mnt"); where != before {
		t.Errorf("the process is in %s and was in %s", where, before)
	}
}

func TestVersionsSideBySide(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	install := func(version string) {
		b := fcdouble.Build(t, fcdouble.Options{Version: version})
		must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		must(t, os.Symlink(b.Firecracker, filepath.Join(dir, version, "firecracker")))
		must(t, os.Symlink(b.Jailer, filepath.Join(dir, version, "jailer")))
	}
	open := func() *Engine {
		e, err := New(Options{Dir: dir})
		must(t, err)
		return e
	}
	const older, newer = "1.13.1", "1.16.1"
	install(older)
	e := open()
	vm, cfg := bootTiny(t, e)
	must(t, vm.Pause(t.Context()))
	state := save(t, vm)
	must(t, vm.Kill(t.Context()))

	install(newer)
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	info, err := e.Probe(t.Context())
	if err != nil || info.Version != newer {
		t.Errorf("%+v, %v", info, err)
	}
	cfg.Dir = filepath.Join(t.TempDir(), "vm")
	must(t, os.Mkdir(cfg.Dir, 0o700))
	thawed := thaw(t, e, cfg, state, nil).(*machine)
	if got := thawed.jail.binary.Version.String(); got != older {
		t.Errorf("thawed by %s, saved by %s", got, older)
	}
	must(t, thawed.Kill(t.Context()))

	must(t, os.RemoveAll(filepath.Join(dir, older)))
	f, err := os.Open(state)
	must(t, err)
	defer f.Close()
	_, err = open().Thaw(t.Context(), cfg, vmm.Image{State: f})
	if e := spore.AsError(err); e == nil || e.Code != spore.CodeStale || !strings.Contains(e.Hint, "1.13") {
		t.Errorf("a snapshot that nothing reads: %+v", e)
	}
}

func TestRefusals(t *testing.T) {
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "firecracker")
		must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
		return path
	}
	arm := filepath.Join(t.TempDir(), "firecracker")
	must(t, os.WriteFile(arm, append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00\x01\x00\x00\x00"), make([]byte, 40)...), 0o700))
	for name, tc := range map[string]struct{ binary, want string }{
		"too old":         {script("echo Firecracker v1.9.2"), "1.10 is the oldest"},
		"too new":         {script("echo Firecracker v2.0.0"), "newest"},
		"no version":      {script("echo hello"), "does not tell its version"},
		"broken":          {script("exit 1"), "does not run"},
		"another machine": {arm, "aarch64"},
		"missing":         {"/nowhere/firecracker", "there is no Firecracker at"},
	} {
		e, err := New(Options{Binaries: []string{tc.binary}, NoJailer: true})
		must(t, err)
		_, err = e.Probe(t.Context())
		if spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), tc.want) || spore.AsError(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	e, err := New(Options{Dir: t.TempDir()})
	must(t, err)
	t.Setenv("PATH", t.TempDir())
	if _, err := e.Probe(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Errorf("not installed: %v", err)
	}
	for name, o := range map[string]Options{
		"a pool without a place": {Pool: 1}, "a cgroup with dots": {CgroupParent: "../x"}, "no user": {UIDBase: -1}, "a negative pool": {Pool: -1},
	} {
		if _, err := New(o); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestJailerMissing(t *testing.T) {
	needRoot(t)
	b := fcdouble.Build(t, fcdouble.Options{})
	lone := filepath.Join(t.TempDir(), "firecracker")
	must(t, os.Symlink(b.Firecracker, lone))
	e, err := New(Options{Binaries: []string{lone}})
	must(t, err)
	if _, err := e.Probe(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), "no jailer") {
		t.Errorf("%v", err)
	}
}

func TestJailOnNodev(t *testing.T) {
	needRoot(t)
	e := doubleEngine(t, "", nil)
	cfg := tinyConfig(t)
	must(t, unix.Mount("tmpfs", cfg.Dir, "tmpfs", unix.MS_NODEV, ""))
	defer func() { must(t, unix.Unmount(cfg.Dir, 0)) }()
	_, err := e.Boot(t.Context(), cfg)
	if spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), "nodev") {
		t.Errorf("%v", err)
	}
}

func TestStartFailureSaysWhy(t *testing.T) {
	needRoot(t)
	b := fcdouble.Build(t, fcdouble.Options{})
	jailer := filepath.Join(t.TempDir(), "jailer")
	must(t, os.WriteFile(jailer, []byte("#!/bin/sh\necho the dog ate it >&2; exit 3\n"), 0o700))
	e, err := New(Options{Binaries: []string{b.Firecracker}, Jailer: jailer})
	must(t, err)
	cfg := tinyConfig(t)
	_, err = e.Boot(t.Context(), cfg)
	if spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), "the dog ate it") {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(cfg.Dir); err != nil || len(entries) > 0 {
		t.Errorf("files were left: %v, %v", entries, err)
	}
	if _, err := os.Stat(cfg.Memory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the memory file was left: %v", err)
	}
}

func TestSocketIsUnsupported(t *testing.T) {
	cfg := tinyConfig(t)
	cfg.NIC = &vmm.NIC{MAC: "02:00:00:00:00:01", Socket: "/x"}
	e, err := New(Options{})
	must(t, err)
	_, err = e.Boot(context.Background(), cfg)
	if e := spore.AsError(err); e == nil || e.Code != spore.CodeUnsupported || e.Hint == "" {
		t.Errorf("%+v", e)
	}
}

// What the VM may have put in the place of a socket or a file is not followed.
func TestHostileRoot(t *testing.T) {
	needRoot(t)
	vm, _ := bootTiny(t, doubleEngine(t, "", nil))
	must(t, vm.Pause(t.Context()))
	j := vm.jail
	must(t, os.Remove(j.file(nameVsock)))
	must(t, os.Symlink("/run/some.sock", j.file(nameVsock)))
	if conn, err := j.dial(t.Context(), nameVsock); err == nil {
		conn.Close()
		t.Error("a link in the place of the vsock socket is followed")
	}
	scratch := fmt.Sprintf("/proc/%d/root/%s/", j.proc.pid, nameScratch)
	must(t, os.Symlink("/etc/passwd", scratch+nameState))
	if f, err := j.openScratch(nameState); err == nil {
		f.Close()
		t.Error("a link in the place of the state is followed")
	}
	must(t, os.Remove(scratch+nameState))
	must(t, unix.Mkfifo(scratch+nameState, 0o600))
	if f, err := j.openScratch(nameState); err == nil {
		f.Close()
		t.Error("a pipe in the place of the state is read")
	}
}
