package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/testbed"
)

// A controller is in one hierarchy only, so on a machine with version 1 the other version cannot be tried. In a VM it can: the test's
// program is then the VM's first process, and runs the tests as root and as a user whom a group was delegated to.

const (
	verdictGood = "cgroup tests in the guest: good"
	verdictBad  = "cgroup tests in the guest: bad"
)

// runAsInit runs the tests in a VM and powers it off.
func runAsInit() {
	if err := initTests(); err != nil {
		fmt.Println(verdictBad, err)
	} else {
		fmt.Println(verdictGood)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println(err)
	}
}

func initTests() error {
	const top = "/sys/fs/cgroup"
	for _, m := range []struct{ kind, at, data string }{{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/tmp", "mode=1777"}, {"cgroup2", top, ""}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	tests := func(attr *syscall.SysProcAttr, names string) error {
		cmd := exec.Command("/proc/self/exe", "-test.v", "-test.timeout", "2m", "-test.run", "^("+names+")$")
		cmd.Env = []string{"SPORE_CGROUP_WANT=v2", "TMPDIR=/tmp"}
		cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
		return cmd.Run()
	}
	if err := tests(nil, "TestShareIsHeld|TestServersLeaveEachOtherAlone|TestGovern|TestGovernWhereItIs|TestBadInput"); err != nil {
		return fmt.Errorf("as root: %w", err)
	}
	own := filepath.Join(top, "users", "service")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{top, filepath.Dir(own)} {
		if err := enable(dir, "cpu"); err != nil {
			return err
		}
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := os.Chown(filepath.Join(own, name), 1000, 1000); err != nil {
			return err
		}
	}
	dir, err := os.Open(own)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = tests(&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}, UseCgroupFD: true, CgroupFD: int(dir.Fd())}, "TestGovern|TestBadInput")
	if err != nil {
		return fmt.Errorf("as a user: %w", err)
	}
	if _, err := os.Stat(filepath.Join(own, leaf)); err != nil {
		return fmt.Errorf("the user's server did not make way: %w", err)
	}
	return nil
}

func TestVersion2InGuest(t *testing.T) {
	if os.Getenv("SPORE_CGROUP_WANT") != "" {
		t.Skip("in the guest already")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no Go toolchain to make the guest's program")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", program, "github.com/sporevm/spore/internal/cgroup")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's program: %v\n%s", err, out)
	}
	text, err := os.ReadFile(program)
	must(t, err)
	initrd, err := os.Create(filepath.Join(dir, "initrd"))
	must(t, err)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.StaticFile("init", string(text), 0o755),
	}
	must(t, cpio.WriteRecordsAndDirs(cpio.Newc.Writer(initrd), records))
	must(t, cpio.WriteTrailer(cpio.Newc.Writer(initrd)))
	must(t, initrd.Close())

	kernel, _ := testbed.KernelFiles(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "384", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd.Name(), "-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check")
	out, err := qemu.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("QEMU is not installed")
	}
	for _, line := range strings.Split(string(out), "\n") {
		t.Log("guest: ", strings.TrimSpace(line))
	}
	if err != nil || !bytes.Contains(out, []byte(verdictGood)) {
		t.Fatalf("the guest did not say that all is good (%v)", err)
	}
}
