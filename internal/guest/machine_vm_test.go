package guest

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

func TestVM(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	var f template
	f.kernel, f.initrd = testKernel(t)
	f.rootfs, f.disk = makeDrives(t, dir)
	f.memory, f.state = filepath.Join(dir, "memory"), filepath.Join(dir, "state")
	start := time.Now()
	m := startMachine(t, f.kernel, f.initrd, f.memory, f.disk, f.rootfs, false)
	a, err := Connect(ctx, m.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("boot to agent %v", time.Since(start))
	e, err := a.Configure(ctx, Config{Cmd: []string{"sh", "-c", "echo started; sleep 1000"}, WorkingDir: "/srv/app", Env: []string{"COLOR=red"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", e)
	r, err := a.Run(ctx, Command{Path: "sh", Args: []string{"-c", "id; pwd; echo $COLOR; mount; ls -la /dev /etc; exit 3"}})
	t.Logf("%+v %s%s %v", r.ExitCode, r.Stdout, r.Stderr, err)
	if err := a.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	m.freeze(f.state)
	a.Close()
	m.stop()

	for range 3 {
		start := time.Now()
		m := f.thaw(t)
		cont := time.Now()
		m.do("cont", nil)
		a, err := Connect(ctx, m.dial)
		if err != nil {
			t.Fatal(err)
		}
		linked := time.Now()
		facts, err := a.Greet(ctx, Identity{Hostname: "s1", MachineID: "0123456789abcdef0123456789abcdef"})
		if err != nil {
			t.Fatal(err)
		}
		greeted := time.Now()
		r, err := a.Run(ctx, Command{Path: "/bin/true"})
		if err != nil || r.ExitCode != 0 {
			t.Fatalf("%+v %v", r, err)
		}
		ran := time.Now()
		r, err = a.Run(ctx, Command{Path: "/bin/true"})
		again := time.Now()
		t.Logf("up %v link %v greet %v run %v again %v: %+v", cont.Sub(start), linked.Sub(cont), greeted.Sub(linked), ran.Sub(greeted), again.Sub(ran), facts)
		a.Close()
		m.stop()
	}
}
