package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const foreignSize = 8 << 20

// foreignConfig is a VM whose disk belongs to the caller.
func foreignConfig(t *testing.T, path string) vmm.Config {
	t.Helper()
	h := harness(t)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "vm"), 0o700))
	return vmm.Config{ID: "vm", Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: 128, Kernel: h.Kernel, Initrd: h.Initrd,
		Cmdline: "quiet", Memory: filepath.Join(dir, "memory"), Drives: []vmm.Drive{{ID: "disk", Path: path, Foreign: true}}}
}

func endAfter(t *testing.T, vm vmm.VM) vmm.VM {
	t.Cleanup(func() { must(t, vm.Kill(context.Background())) })
	return vm
}

// ask has the guest do something and returns its answer.
func ask(t *testing.T, vm vmm.VM, command string) string {
	t.Helper()
	conn, err := vm.DialPort(t.Context(), vmm.PortControl)
	must(t, err)
	defer conn.Close()
	greet(t, conn)
	_, err = io.WriteString(conn, command+"\n")
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(3*time.Minute)))
	in := bufio.NewScanner(conn)
	for in.Scan() {
		if strings.HasPrefix(in.Text(), "error") {
			t.Fatal(in.Text())
		}
		if !strings.HasPrefix(in.Text(), "hello-") { // it may have been greeted more than once
			return in.Text()
		}
	}
	t.Fatalf("%s: no answer: %v", command, in.Err())
	return ""
}

func inUse(t *testing.T, what, path string, err error) {
	t.Helper()
	var e *spore.Error
	if !errors.As(err, &e) || e.Code != spore.CodeInUse || e.Field != "disks.path" || !strings.Contains(e.Message, path) {
		t.Errorf("%s: %v", what, err)
	}
}

// tryForeign has a guest write to a drive of the caller's, while nobody else may, and looks at what is there afterwards.
func tryForeign(t *testing.T, path string, readers bool) {
	e := harness(t).New(t)
	cfg := foreignConfig(t, path)
	vm, err := e.Boot(t.Context(), cfg)
	must(t, err)
	endAfter(t, vm)
	ask(t, vm, "disk-write 1024 7")
	sum := ask(t, vm, "disk-sum 1024 0")

	_, err = e.Boot(t.Context(), foreignConfig(t, path))
	inUse(t, "a second VM", path, err)

	// What QEMU makes of it: flushes reach the medium, and nothing is discarded.
	var nodes []struct {
		Name   string `json:"node-name"`
		Zeroes string `json:"detect_zeroes"`
		Cache  struct {
			NoFlush bool `json:"no-flush"`
		}
	}
	must(t, vm.(*machine).qmp.Do(t.Context(), "query-named-block-nodes", map[string]any{"flat": true}, &nodes))
	if len(nodes) != 3 {
		t.Errorf("%d nodes", len(nodes))
	}
	for _, n := range nodes {
		if n.Cache.NoFlush || n.Zeroes != "off" {
			t.Errorf("%+v", n)
		}
	}
	if links, err := filepath.Glob(filepath.Join(cfg.Dir, "qemu", "drive-*")); err != nil || len(links) > 0 {
		t.Errorf("the VM's directory shows the drive: %v, %v", links, err)
	}

	must(t, vm.Pause(t.Context()))
	state := filepath.Join(t.TempDir(), "state")
	out, err := os.Create(state)
	must(t, err)
	must(t, vm.SaveState(t.Context(), out))
	must(t, out.Close())
	must(t, vm.Kill(t.Context()))
	head := make([]byte, 1<<20)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	if n, err := f.ReadAt(head, 0); err != nil || bytes.Count(head, []byte{0}) > n/2 {
		t.Errorf("what the guest wrote is not there: %d, %v", n, err)
	}
	if size, err := fileSize(path); err != nil || size != foreignSize {
		t.Errorf("it has %d bytes (%v)", size, err)
	}

	// It comes back with the same VM, thawed.
	thaw := func(cfg vmm.Config) (vmm.VM, error) {
		in, err := os.Open(state)
		must(t, err)
		defer in.Close()
		return e.Thaw(t.Context(), cfg, vmm.Image{State: in})
	}
	again := foreignConfig(t, path)
	again.Memory = cfg.Memory
	vm, err = thaw(again)
	must(t, err)
	endAfter(t, vm)
	must(t, vm.Resume(t.Context()))
	if got := ask(t, vm, "disk-sum 1024 0"); got != sum {
		t.Errorf("the guest reads %s, wrote %s", got, sum)
	}
	must(t, vm.Kill(t.Context()))

	if !readers {
		return
	}
	// Readers share it among themselves, and keep writers out, by QEMU's own locks.
	reader := func() vmm.Config {
		cfg := foreignConfig(t, path)
		cfg.Drives[0].ReadOnly = true
		return cfg
	}
	one, err := e.Boot(t.Context(), reader())
	must(t, err)
	endAfter(t, one)
	two, err := e.Boot(t.Context(), reader())
	must(t, err)
	endAfter(t, two)
	_, err = e.Boot(t.Context(), foreignConfig(t, path))
	inUse(t, "a VM that writes what others read", path, err)
	late := foreignConfig(t, path)
	late.Memory = cfg.Memory
	vm, err = thaw(late)
	if err == nil { // locks are taken as the guest is set going
		endAfter(t, vm)
		err = vm.Resume(t.Context())
	}
	inUse(t, "a thawed VM that writes what others read", path, err)
}

func TestForeignFile(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "foreign") // another file system than that of the VM's directory
	must(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "di sk,1")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, foreignSize))
	tryForeign(t, path, true)
}

func TestForeignDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, foreignSize))
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("this machine has no loop devices for the test: %v", err)
	}
	path := strings.TrimSpace(string(out))
	defer func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	}()
	tryForeign(t, path, false)
}

func TestForeignRefusals(t *testing.T) {
	e := harness(t).New(t)
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		path string
		code spore.Code
	}{
		"missing":   {filepath.Join(dir, "missing"), spore.CodeNotFound},
		"directory": {dir, spore.CodeInvalid},
	} {
		cfg := foreignConfig(t, tc.path)
		_, err := e.Boot(t.Context(), cfg)
		var refusal *spore.Error
		if !errors.As(err, &refusal) || refusal.Code != tc.code || refusal.Field != "disks.path" {
			t.Errorf("%s: %v", name, err)
		}
		if entries, err := os.ReadDir(cfg.Dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: files were left: %v, %v", name, entries, err)
		}
		if _, err := os.Stat(cfg.Memory); err == nil {
			t.Errorf("%s: the memory file was left", name)
		}
	}
}

func TestLockRefusal(t *testing.T) {
	drives := []vmm.Drive{{ID: "disk", Path: "/data/disk"}, {ID: "disk1", Path: "/mine", Foreign: true}}
	for words, want := range map[string]string{
		`qemu: -blockdev driver=raw,node-name=raw-disk1,file=file-disk1: Failed to get "write" lock`:           "disks.path: /mine is in use",
		`qemu: -device virtio-blk-pci,id=drive-disk,drive=disk,serial=disk: Failed to get shared "write" lock`: "drives: /data/disk is in use",
		`Failed to get "consistent read" lock`:      "disks.path: a drive of the VM is in use",
		`Could not open '/data/disk': No such file`: "",
	} {
		e := lockRefusal(words, drives)
		if (e == nil) != (want == "") || e != nil && (e.Code != spore.CodeInUse || !strings.HasPrefix(e.Error(), want)) {
			t.Errorf("%s: %v", words, e)
		}
	}
}
