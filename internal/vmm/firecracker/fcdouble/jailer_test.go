package fcdouble_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

// jailed starts a VMM by a jailer and describes what it finds: files of the jail and the process in it.
func jailed(t *testing.T, jailer, firecracker string, flags ...string) []string {
	t.Helper()
	base := shortDir(t)
	args := append([]string{"--id", "j1", "--exec-file", firecracker, "--uid", "1234", "--gid", "1235", "--chroot-base-dir", base}, flags...)
	cmd := exec.Command(jailer, append(args, "--", "--api-sock", "/api.sock")...)
	cmd.Env = append(os.Environ(), "A_SECRET=1")
	out, err := os.Create(filepath.Join(base, "out"))
	must(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	root := filepath.Join(base, "firecracker", "j1", "root")
	pid := 0
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(filepath.Join(root, "firecracker.pid"))
		pid, _ = strconv.Atoi(string(text))
		if _, err := os.Stat(filepath.Join(root, "api.sock")); err == nil && pid != 0 {
			break
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(out.Name())
			t.Fatalf("nothing runs in the jail:\n%s", text)
		}
	}
	defer func() {
		syscall.Kill(pid, syscall.SIGKILL)
		<-done
	}()
	var found []string
	must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		found = append(found, fmt.Sprintf("%s %s %d:%d device %x", strings.TrimPrefix(path, root), fi.Mode(), st.Uid, st.Gid, st.Rdev))
		return nil
	}))
	read := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		must(t, err)
		return string(text)
	}
	found = append(found, "command "+regexp.MustCompile(`(-us) \d+`).ReplaceAllString(strings.ReplaceAll(read("cmdline"), "\x00", " "), "$1 N"), "environment "+read("environ"))
	for line := range strings.Lines(read("status")) {
		if name, _, _ := strings.Cut(line, ":"); slices.Contains([]string{"Name", "Uid", "Gid", "Groups", "NSpid"}, name) {
			if name == "NSpid" {
				line = fmt.Sprintf("PID namespaces %d\n", len(strings.Fields(line))-1)
			}
			found = append(found, strings.Join(strings.Fields(line), " "))
		}
	}
	for line := range strings.Lines(read("limits")) {
		if strings.HasPrefix(line, "Max open files") || strings.HasPrefix(line, "Max file size") {
			found = append(found, strings.Join(strings.Fields(line), " "))
		}
	}
	for _, fd := range []string{"0", "1", "2"} {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd))
		must(t, err)
		found = append(found, fd+" is "+filepath.Base(to))
	}
	for _, ns := range []string{"mnt", "net"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		must(t, err)
		found = append(found, fmt.Sprintf("own %s namespace: %t", ns, mine != its))
	}
	sid, err := strconv.Atoi(strings.Fields(read("stat")[strings.LastIndex(read("stat"), ")")+1:])[3])
	must(t, err)
	own, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	return append(found, fmt.Sprintf("own session: %t", sid != int(own)))
}

var jailFlags = map[string][]string{
	"plain": nil, "daemon": {"--daemonize"}, "pid namespace": {"--new-pid-ns"}, "both": {"--daemonize", "--new-pid-ns"},
	"limits": {"--resource-limit", "no-file=100", "--resource-limit", "fsize=1000000000"},
	"netns":  {"--netns", "/proc/self/ns/net"},
}

func TestJail(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the jailer needs root")
	}
	b := fcdouble.Build(t, fcdouble.Options{})
	for name, flags := range jailFlags {
		found := strings.Join(jailed(t, b.Jailer, b.Firecracker, flags...), "\n")
		for _, want := range []string{
			"\n/api.sock Srwxr-xr-x 1234:1235", "\n/dev/kvm Dcrw------- 1234:1235 device ae8", "\n/dev/net/tun Dcrw------- 1234:1235 device ac8", "\n/firecracker.pid -rw-r--r-- 0:0",
			"\ncommand /firecracker --id j1 --start-time-us N --start-time-cpu-us N --parent-cpu-time-us N --api-sock /api.sock \nenvironment \n",
			"\nUid: 1234 1234 1234 1234\nGid: 1235 1235 1235 1235\nGroups:\n", "\nown mnt namespace: true",
		} {
			if !strings.Contains(found, want) {
				t.Errorf("%s: %q is missing:\n%s", name, want, found)
			}
		}
	}
}

// TestJailConformance compares what the real jailer makes of the real Firecracker with what the stand-ins make.
func TestJailConformance(t *testing.T) {
	jailer, version, _ := real(t, "SPORE_JAILER")
	firecracker, _, _ := real(t, "SPORE_FIRECRACKER")
	if os.Getuid() != 0 {
		t.Skip("the jailer needs root")
	}
	b := fcdouble.Build(t, fcdouble.Options{Version: version})
	for name, flags := range jailFlags {
		if diff := cmp.Diff(jailed(t, jailer, firecracker, flags...), jailed(t, b.Jailer, b.Firecracker, flags...)); diff != "" {
			t.Errorf("%s: real (-) and stand-in (+) differ:\n%s", name, diff)
		}
	}
}

// TestUsedJail tries a chroot a second time.
func TestUsedJail(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the jailer needs root")
	}
	b := fcdouble.Build(t, fcdouble.Options{})
	base := shortDir(t)
	must(t, os.MkdirAll(filepath.Join(base, "firecracker/j1/root/dev"), 0o700))
	must(t, syscall.Mknod(filepath.Join(base, "firecracker/j1/root/dev/kvm"), syscall.S_IFCHR|0o600, 10<<8|232))
	out, err := exec.Command(b.Jailer, "--id", "j1", "--exec-file", b.Firecracker, "--uid", "1", "--gid", "1", "--chroot-base-dir", base).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Failed to create /dev/kvm via mknod inside the jail: File exists (os error 17)") {
		t.Errorf("%v: %s", err, out)
	}
}
