package usernet

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// TestVM boots a guest that is plugged in nowhere, freezes it, thaws it beside a sidecar, and has it fetch a page by name.
func TestVM(t *testing.T) {
	w := newWorld(t)
	page := strings.Repeat("hello from the world\n", 5000)
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, page) })}
	l := w.tcpListener(t, serverIP+":80")
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	w.names.set("good.example", serverIP)

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	accel := os.Getenv("SPORE_TEST_ACCEL")
	if accel == "" {
		accel = qemu.AccelTCG
	}
	eng, err := qemu.New(qemu.Options{Accel: accel})
	must(t, err)
	dir := t.TempDir()
	rootfs, disk := makeDrives(t, dir)
	cfg := vmm.Config{
		ID: "s1", Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: 160, Cmdline: "quiet", Memory: filepath.Join(dir, "memory"),
		Drives: []vmm.Drive{{ID: "rootfs", Path: rootfs, ReadOnly: true}, {ID: "disk", Path: disk}}, NIC: &vmm.NIC{MAC: "02:53:50:00:00:01"},
	}
	cfg.Kernel, cfg.Initrd = testbed.Kernel(t)
	must(t, os.Mkdir(cfg.Dir, 0o700))
	vm, err := eng.Boot(ctx, cfg)
	must(t, err)
	end := func(vm vmm.VM) { must(t, vm.Kill(context.Background())) }
	t.Cleanup(func() { end(vm) })
	a, err := guest.Connect(ctx, vm.DialPort, guest.Watcher{})
	must(t, err)
	_, err = a.Configure(ctx, guest.Config{})
	must(t, err)
	must(t, a.Warm(ctx))
	must(t, a.Quiesce(ctx))
	must(t, vm.Pause(ctx))
	state, err := os.Create(filepath.Join(dir, "state"))
	must(t, err)
	defer state.Close()
	must(t, vm.SaveState(ctx, state))
	must(t, a.Close())
	end(vm)
	_, err = state.Seek(0, io.SeekStart)
	must(t, err)

	link := w.start(t, Spec{Egress: spore.Egress{AllowDomains: []string{"good.example"}}, UID: 64000077})
	cfg.NIC.Socket = link.Socket()
	vm2, err := eng.Thaw(ctx, cfg, vmm.Image{State: state})
	must(t, err)
	t.Cleanup(func() { end(vm2) })
	must(t, vm2.Resume(ctx))
	a, err = guest.Connect(ctx, vm2.DialPort, guest.Watcher{})
	must(t, err)
	defer a.Close()
	_, err = a.Greet(ctx, guest.Identity{
		SandboxID: "s1", UnixNano: time.Now().UnixNano(), Nameservers: []string{GatewayAddress.String()},
		Addresses: []guest.Address{{Interface: "eth0", CIDR: GuestAddress.String() + "/30", Gateway: GatewayAddress.String()}},
	})
	must(t, err)
	for _, tc := range []struct{ script, want string }{
		{"wget -q -O - http://good.example/ | md5sum; wget -q -O - http://good.example/ | wc -c", fmt.Sprintf("%s\n%d\n", md5Of(page), len(page))},
		{"nc " + otherIP + " 80 </dev/null 2>&1", "nc: can't connect to remote host (" + otherIP + "): Connection refused\n"},
		{"ping -c 2 -W 10 " + serverIP + " >/dev/null && echo pings", "pings\n"},
		{"nslookup evil.example >/dev/null 2>&1 || echo no such name", "no such name\n"},
	} {
		from := time.Now()
		r, err := a.Run(ctx, guest.Command{Path: "sh", Args: []string{"-c", tc.script}})
		if err != nil || string(r.Stdout) != tc.want {
			t.Errorf("%s: %q, want %q; %s, %v", tc.script, r.Stdout, tc.want, r.Stderr, err)
		}
		t.Logf("%s: %s", tc.script, time.Since(from))
	}
	s, err := link.Stats(ctx)
	t.Logf("%+v, %v", s, err)

	// A VM that loses its sidecar loses its network and nothing else.
	must(t, link.Stop(ctx))
	r, err := a.Run(ctx, guest.Command{Path: "sh", Args: []string{"-c", "ping -c 1 -W 1 " + GatewayAddress.String() + " >/dev/null || echo alone"}})
	if err != nil || string(r.Stdout) != "alone\n" {
		t.Errorf("without its sidecar: %q, %v", r.Stdout, err)
	}
	end(vm2)

	link = w.start(t, Spec{})
	cfg.NIC.Socket = link.Socket()
	_, err = state.Seek(0, io.SeekStart)
	must(t, err)
	vm3, err := eng.Thaw(ctx, cfg, vmm.Image{State: state})
	must(t, err)
	pid := pidOf(t, link.dir)
	must(t, link.Ready(ctx))
	end(vm3)
	eventually(t, "the sidecar ends with its VM", func() bool { return !alive(pid) })
}

func md5Of(text string) string {
	cmd := exec.Command("md5sum")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// makeDrives makes a root with busybox, and a blank disk.
func makeDrives(t testing.TB, dir string) (rootfs, disk string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	for path, data := range map[string]string{
		"bin/busybox": string(busybox), "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/hosts": "127.0.0.1 localhost\n",
	} {
		full := filepath.Join(root, path)
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		must(t, os.WriteFile(full, []byte(data), 0o755))
	}
	for _, name := range []string{"sh", "wget", "nc", "ping", "nslookup", "md5sum", "wc", "echo", "cat"} {
		must(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	rootfs, disk = filepath.Join(dir, "rootfs"), filepath.Join(dir, "disk")
	for file, args := range map[string][]string{rootfs: {"-d", root}, disk: nil} {
		args = append(append([]string{"-q", "-F"}, args...), file, "64M")
		if out, err := exec.Command("/usr/sbin/mkfs.ext4", args...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v\n%s", err, out)
		}
	}
	return rootfs, disk
}
