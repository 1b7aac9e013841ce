package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// bootOne boots a small VM, without waiting for its guest.
func bootOne(t *testing.T, e vmm.Engine) (vmm.VM, vmm.Config) {
	t.Helper()
	h := harness(t)
	dir := t.TempDir()
	cfg := vmm.Config{ID: "vm", Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: 128, Kernel: h.Kernel, Initrd: h.Initrd, Memory: filepath.Join(dir, "memory")}
	must(t, os.Mkdir(cfg.Dir, 0o700))
	vm, err := e.Boot(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, vm.Kill(context.Background())) })
	return vm, cfg
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

func TestProcessIsConfined(t *testing.T) {
	e := harness(t).New(t).(*Engine)
	vm, cfg := bootOne(t, e)
	st := status(t, vm.PID())
	if st["Seccomp"] != "2" || st["NoNewPrivs"] != "1" {
		t.Errorf("Seccomp %s, NoNewPrivs %s", st["Seccomp"], st["NoNewPrivs"])
	}
	if os.Geteuid() == 0 {
		uid := fmt.Sprint(e.uidFor(cfg.ID))
		four := strings.Join([]string{uid, uid, uid, uid}, " ")
		if st["Uid"] != four || st["Gid"] != four || st["Groups"] != uid {
			t.Errorf("Uid %s, Gid %s, Groups %s; want %s", st["Uid"], st["Gid"], st["Groups"], uid)
		}
		for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
			if strings.Trim(st[set], "0") != "" {
				t.Errorf("%s %s", set, st[set])
			}
		}
		root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", vm.PID()))
		if err != nil || root != filepath.Join(cfg.Dir, "qemu") {
			t.Errorf("its root directory is %s (%v)", root, err)
		}
		other := e.uidFor("another")
		if other == e.uidFor(cfg.ID) {
			t.Error("two VMs share a user")
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", vm.PID()))
	must(t, err)
	for _, want := range []string{"Max core file size 0 0", "Max open files 256 256"} {
		if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), want) {
			t.Errorf("no %q in\n%s", want, limits)
		}
	}
	if sid, err := unix.Getsid(vm.PID()); err != nil || sid != vm.PID() {
		t.Errorf("its session is %d (%v)", sid, err)
	}
	commandline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID()))
	must(t, err)
	if strings.Contains(string(commandline), filepath.Dir(cfg.Dir)) {
		t.Error("the command line names a path of the host")
	}
}

// A server can end between starting a process and recording it.
func TestCleanWithoutRecord(t *testing.T) {
	e := harness(t).New(t)
	for _, damage := range []func(path string) error{os.Remove, func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }} {
		vm, cfg := bootOne(t, e)
		must(t, damage(filepath.Join(cfg.Dir, "qemu", nameRecord)))
		_, err := e.Boot(t.Context(), func() vmm.Config { c := cfg; c.Memory += "2"; return c }())
		if spore.CodeOf(err) != spore.CodeConflict {
			t.Errorf("Boot beside an orphan: %v", err)
		}
		must(t, e.Clean(t.Context(), cfg.Dir))
		<-vm.Done()
		if err := syscall.Kill(vm.PID(), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", vm.PID(), err)
		}
	}
}

// A record may outlive its process, and the pid then belong to someone else.
func TestCleanSparesStrangers(t *testing.T) {
	e := harness(t).New(t)
	vm, cfg := bootOne(t, e)
	must(t, vm.Kill(t.Context()))
	path := filepath.Join(cfg.Dir, "qemu", nameRecord)
	text, err := os.ReadFile(path)
	must(t, err)
	own := strings.Replace(string(text), fmt.Sprintf(`"pid":%d`, vm.PID()), fmt.Sprintf(`"pid":%d`, os.Getpid()), 1)
	must(t, os.WriteFile(path, []byte(own), 0o600))
	must(t, e.Clean(t.Context(), cfg.Dir)) // ends this test if it is wrong
	if _, err := e.Adopt(t.Context(), cfg); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("Adopt of a stranger: %v", err)
	}
}

func TestStartFailureSaysWhy(t *testing.T) {
	script := filepath.Join(t.TempDir(), "qemu")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = --version ] && { echo QEMU emulator version 9.1.0; exit; }\necho the dog ate it >&2; exit 3\n"), 0o700))
	h := harness(t)
	e, err := New(Options{Binary: script, Accel: AccelTCG})
	must(t, err)
	dir := t.TempDir()
	cfg := vmm.Config{ID: "vm", Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: 128, Kernel: h.Kernel, Memory: filepath.Join(dir, "memory")}
	must(t, os.Mkdir(cfg.Dir, 0o700))
	_, err = e.Boot(t.Context(), cfg)
	if spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), "the dog ate it") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(cfg.Memory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the memory file was left: %v", err)
	}
}

func TestProbeRefusals(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"too old":    {"echo QEMU emulator version 6.2.0", "7.2 is the oldest"},
		"no version": {"echo hello", "does not tell its version"},
		"broken":     {"exit 1", "does not run"},
	} {
		script := filepath.Join(t.TempDir(), "qemu")
		must(t, os.WriteFile(script, []byte("#!/bin/sh\n"+tc.script+"\n"), 0o700))
		e, err := New(Options{Binary: script, Accel: AccelTCG})
		must(t, err)
		if _, err := e.Probe(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e, err := New(Options{Binary: "no-such-hypervisor"})
	must(t, err)
	if _, err := e.Probe(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Errorf("missing: %v", err)
	}
	if _, err := New(Options{Accel: "magic"}); spore.CodeOf(err) != spore.CodeInvalid {
		t.Errorf("%v", err)
	}
}

// A trial whose server died in it leaves a VM, which the next one ends.
func TestTrialLeftBehind(t *testing.T) {
	h := harness(t)
	state := t.TempDir()
	cfg := vmm.Config{
		ID: "kvm-trial", Dir: filepath.Join(state, trialDir), VCPUs: 1, MemoryMiB: 128, Kernel: h.Kernel, Initrd: h.Initrd,
		Memory: filepath.Join(state, trialDir, "memory"),
	}
	must(t, os.Mkdir(cfg.Dir, 0o700))
	vm, err := h.New(t).Boot(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { syscall.Kill(vm.PID(), syscall.SIGKILL) })
	must(t, vm.Release())
	e, err := New(Options{StateDir: state})
	must(t, err)
	e.trialTime = 0
	hv, err := e.findBinary(t.Context())
	must(t, err)
	if err := e.trial(t.Context(), hv, h.Kernel, h.Initrd); err == nil {
		t.Error("a trial had no time and came to its end")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := startTime(vm.PID()); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the VM that was left behind lives")
		}
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the trial's directory is left: %v", err)
	}
}

// The trial is made for real; what it comes to depends on the host. It must be bounded, remembered and obeyed.
func TestTrialOfKVM(t *testing.T) {
	limit := trialTime
	if os.Getenv("SPORE_TEST_ACCEL") != AccelKVM {
		limit = 4 * time.Second
	}
	h := harness(t)
	dir := t.TempDir()
	open := func(accel string) *Engine {
		e, err := New(Options{Accel: accel, StateDir: dir, Kernel: h.Kernel, Initrd: h.Initrd})
		must(t, err)
		e.trialTime = limit
		return e
	}
	info, err := open(AccelAuto).Probe(t.Context())
	must(t, err)
	t.Logf("%+v", info)
	if info.Accel == AccelTCG && info.AccelReason == "" {
		t.Error("no reason is given")
	}
	limit = 0 // a second trial would fail
	again, err := open(AccelAuto).Probe(t.Context())
	must(t, err)
	if again != info && !strings.Contains(info.AccelReason, "/dev/kvm") {
		t.Errorf("%+v, then %+v", info, again)
	}
	_, err = open(AccelKVM).Probe(t.Context())
	if (info.Accel == AccelKVM) != (err == nil) || err != nil && spore.CodeOf(err) != spore.CodeUnsupported {
		t.Errorf("KVM or nothing: %v", err)
	}
}
