package network

import (
	"context"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	agent "github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// TestVMs freezes a guest that is plugged in nowhere and thaws it twice, each with a cable of its own.
func TestVMs(t *testing.T) {
	w := newWorld(t)
	at := localNames(t, map[string]netip.Addr{"good.example": publicA, "bad.example": publicB})
	m := w.serving(func(o *Options) { o.Nameservers, o.PoolSize = []netip.AddrPort{at}, 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	f := freeze(t, ctx)
	open := f.thaw(t, ctx, mustAttach(t, m, "open", spore.Egress{}), "open")
	names := f.thaw(t, ctx, mustAttach(t, m, "names", spore.Egress{AllowDomains: []string{"good.example"}}), "names")

	const echo = "echo spore | nc -w 5 "
	for _, c := range []struct {
		who     string
		a       *agent.Agent
		script  string
		reaches bool
	}{
		{"open", open, "ping -c 2 -W 5 " + publicA.String(), true},
		{"open", open, echo + publicB.String() + " 7", true},
		{"open", open, echo + "bad.example 7", true},
		{"open", open, "ping -c 1 -W 1 " + m.find("names").inner.String(), false},
		{"open", open, echo + m.find("names").outer.String() + " 7", false},
		{"open", open, echo + hostAddr.String() + " 7", false},
		{"open", open, echo + private.String() + " 7", false},
		{"open", open, echo + metadata.String() + " 7", false},
		{"names", names, echo + publicA.String() + " 7", false},
		{"names", names, echo + "good.example 7", true},
		{"names", names, echo + publicA.String() + " 7", true},
		{"names", names, echo + "bad.example 7", false},
		{"names", names, "ping -c 1 -W 1 " + publicB.String(), false},
	} {
		begin := time.Now()
		r, err := c.a.Run(ctx, agent.Command{Path: "sh", Args: []string{"-c", c.script}})
		if err != nil {
			t.Fatal(err)
		}
		out := string(r.Stdout)
		if reached := strings.Contains(out, "spore\n") || strings.Contains(out, " 0% packet loss"); reached != c.reaches {
			t.Errorf("%s, %s: %s%s", c.who, c.script, out, r.Stderr)
		}
		t.Logf("%s, %s: %v", c.who, c.script, time.Since(begin))
	}

	// A change holds for the guest at once.
	change(t, m, "open", spore.Egress{Internet: off})
	r, err := open.Run(ctx, agent.Command{Path: "sh", Args: []string{"-c", echo + publicB.String() + " 7 2>&1"}})
	if err != nil || !strings.Contains(string(r.Stdout), "Connection refused") {
		t.Errorf("after the change: %s, %v", r.Stdout, err)
	}
}

// frozen is a guest with a network device that stands still.
type frozen struct {
	engine vmm.Engine
	dir    string
	config vmm.Config
	state  *os.File
}

func freeze(t *testing.T, ctx context.Context) *frozen {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	accel := os.Getenv("SPORE_TEST_ACCEL")
	if accel == "" {
		accel = qemu.AccelTCG
	}
	engine, err := qemu.New(qemu.Options{Accel: accel})
	must(err)
	f := &frozen{engine: engine, dir: t.TempDir()}
	root := filepath.Join(f.dir, "root")
	must(os.MkdirAll(filepath.Join(root, "bin"), 0o755))
	must(os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	busybox, err := os.ReadFile("/bin/busybox")
	must(err)
	must(os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755))
	for _, name := range []string{"sh", "nc", "ping"} {
		must(os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	rootfs, disk := filepath.Join(f.dir, "rootfs"), filepath.Join(f.dir, "disk")
	for _, args := range [][]string{{"-q", "-F", "-d", root, rootfs, "32M"}, {"-q", "-F", disk, "32M"}} {
		if out, err := exec.Command("/usr/sbin/mkfs.ext4", args...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v\n%s", err, out)
		}
	}
	f.config = vmm.Config{
		ID: "frozen", Dir: filepath.Join(f.dir, "frozen"), VCPUs: 1, MemoryMiB: 160, Cmdline: "quiet", Memory: filepath.Join(f.dir, "memory"),
		Drives: []vmm.Drive{{ID: "rootfs", Path: rootfs, ReadOnly: true}, {ID: "disk", Path: disk}}, NIC: &vmm.NIC{MAC: GuestMAC},
	}
	f.config.Kernel, f.config.Initrd = testbed.Kernel(t)
	must(os.Mkdir(f.config.Dir, 0o700))
	vm, err := engine.Boot(ctx, f.config)
	must(err)
	t.Cleanup(func() { vm.Kill(context.Background()) })
	a, err := agent.Connect(ctx, vm.DialPort, agent.Watcher{})
	must(err)
	_, err = a.Configure(ctx, agent.Config{})
	must(err)
	must(a.Warm(ctx))
	must(a.Quiesce(ctx))
	must(vm.Pause(ctx))
	f.state, err = os.Create(filepath.Join(f.dir, "state"))
	must(err)
	t.Cleanup(func() { f.state.Close() })
	must(vm.SaveState(ctx, f.state))
	must(a.Close())
	must(vm.Kill(ctx))
	return f
}

// thaw starts the guest once more, with its cable at a link.
func (f *frozen) thaw(t *testing.T, ctx context.Context, l Link, id string) *agent.Agent {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := f.config
	c.ID, c.Dir = id, filepath.Join(f.dir, id)
	must(os.Mkdir(c.Dir, 0o700))
	disk, err := os.ReadFile(f.config.Drives[1].Path)
	must(err)
	own := filepath.Join(f.dir, id+".disk")
	must(os.WriteFile(own, disk, 0o600))
	c.Drives = []vmm.Drive{f.config.Drives[0], {ID: "disk", Path: own}}
	c.NIC = &vmm.NIC{MAC: l.MAC, NetNS: l.NetNS, Tap: l.Tap}
	_, err = f.state.Seek(0, io.SeekStart)
	must(err)
	vm, err := f.engine.Thaw(ctx, c, vmm.Image{State: f.state})
	must(err)
	t.Cleanup(func() {
		if err := vm.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
	must(vm.Resume(ctx))
	a, err := agent.Connect(ctx, vm.DialPort, agent.Watcher{})
	must(err)
	t.Cleanup(func() { a.Close() })
	_, err = a.Greet(ctx, agent.Identity{
		SandboxID: id, UnixNano: time.Now().UnixNano(), Nameservers: []string{l.Nameserver.String()},
		Addresses: []agent.Address{{Interface: "eth0", CIDR: l.Address.String(), Gateway: l.Gateway.String()}},
	})
	must(err)
	return a
}
