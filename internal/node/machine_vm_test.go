package node

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm/qemu"
)

// sh runs a command in a sandbox and answers what it printed.
func (r *rig) sh(t *testing.T, s *spore.Sandbox, script string) string {
	t.Helper()
	m, err := r.machine(s.ID, s.Generation)
	must(t, err)
	a, err := m.connect(t.Context())
	must(t, err)
	out, err := a.Run(t.Context(), guest.Command{Path: "/bin/sh", Args: []string{"-c", script}})
	must(t, err)
	if out.ExitCode != 0 {
		t.Fatalf("%s: %+v", script, out)
	}
	return strings.TrimSpace(string(out.Stdout))
}

// TestRedoOfRealMachine makes snapshots of a machine that runs, tells them apart, and makes the last of them anew from its
// disk alone.
func TestRedoOfRealMachine(t *testing.T) {
	dir := t.TempDir()
	engine, err := qemu.New(qemu.Options{Accel: qemu.AccelTCG, StateDir: dir})
	must(t, err)
	r := newRig(t, engine, 0)
	ref := testbed.Ref(testbed.Image(t, testbed.Busybox))
	tpl := r.baked(t, ref, small)
	s := r.start(t, tpl.ID)
	snapshot := func(parent string) string {
		t.Helper()
		id := spore.NewSnapshotID()
		f, err := r.Freeze(t.Context(), s, id, parent)
		must(t, err)
		t.Logf("%s: %d bytes of memory, %d of disk, paused %s", id, f.MemoryBytes, f.DiskBytes, f.Paused)
		return id
	}
	r.sh(t, s, "mkdir -p /srv/data && echo one > /srv/data/file && echo two > /root/two && rm /etc/passwd && chmod 700 /bin")
	first := snapshot(tpl.ID)
	r.sh(t, s, "echo 1 > /srv/data/file && rm /root/two && mv /srv/data /srv/moved && mkdir /srv/data && ln -s file /srv/link && head -c 300000 /dev/urandom > /srv/noise && md5sum /srv/noise > /srv/sum")
	second := snapshot(first)

	diff := func(from, to string) []string {
		t.Helper()
		d, err := r.Diff(t.Context(), from, to, 50)
		must(t, err)
		if d.FilesOmitted > 0 || d.MemoryTotal != int64(small.MemoryMiB)*mib || from != to && (d.MemoryChanged == 0 || d.DiskChanged == 0) {
			t.Errorf("%+v", d)
		}
		t.Logf("%d bytes of memory, %d of disk", d.MemoryChanged, d.DiskChanged)
		var out []string
		for _, f := range d.Files {
			out = append(out, string(f.Kind)+" "+f.Path)
		}
		return out
	}
	for _, c := range []struct {
		from, to string
		want     []string
	}{
		{tpl.ID, first, []string{"added /srv/data/file", "added /root/two", "removed /etc/passwd", "modified /bin"}},
		{first, tpl.ID, []string{"removed /srv/data/file", "removed /root/two", "added /etc/passwd", "modified /bin"}},
		{first, second, []string{"removed /srv/data/file", "removed /root/two", "added /srv/moved/file", "added /srv/link", "added /srv/noise", "added /srv/sum"}},
	} {
		got := diff(c.from, c.to)
		for _, w := range c.want {
			if !slices.Contains(got, w) {
				t.Errorf("the difference lacks %q: %q", w, got)
			}
		}
		if len(got) > len(c.want)+4 {
			t.Errorf("the difference is %q", got)
		}
	}
	if got := diff(second, second); len(got) > 0 {
		t.Errorf("of itself it differs in %q", got)
	}

	redo := *tpl
	redo.ID, redo.Kind = second, spore.KindSnapshot
	as := second + "+redo"
	f, err := r.Rebake(t.Context(), &redo, as, func(line string) { t.Log(line) })
	must(t, err)
	if f.ChainDepth != 0 {
		t.Errorf("%+v", f)
	}
	must(t, r.Probe(t.Context(), &redo, as))
	_, err = r.Promote(t.Context(), as, second)
	must(t, err)
	fresh := r.start(t, second)
	if got := r.sh(t, fresh, "cd / && md5sum -c /srv/sum && cat /srv/moved/file && test ! -e /etc/passwd && stat -c %a /bin"); got != "/srv/noise: OK\n1\n700" {
		t.Errorf("on the disk that was made anew: %q", got)
	}
	if got := r.sh(t, s, "cat /srv/moved/file"); got != "1" { // it stands on what was replaced
		t.Errorf("the sandbox says %q", got)
	}
	snapshot(second)
	report, err := r.Check(t.Context(), true, nil)
	must(t, err)
	if len(report.Problems) > 0 {
		t.Errorf("%+v", report.Problems)
	}
	t.Run("idle", func(t *testing.T) { r.goesToSwap(t, s) })
}

// goesToSwap has a sandbox be idle for longer than its memory is left to it, and wakes it.
func (r *rig) goesToSwap(t *testing.T, s *spore.Sandbox) {
	testbed.Swap(t, 256)
	m, err := r.machine(s.ID, s.Generation)
	must(t, err)
	r.opt.ReclaimAfter = time.Hour
	seen := map[string]*idleness{}
	sum := r.sh(t, s, "md5sum /srv/noise")
	now := time.Now()
	r.lookForIdle(t.Context(), seen, now)
	if got := swapped(t, m.vm.PID()); got != 0 {
		t.Errorf("%d KiB of a sandbox that was just looked at went to swap", got)
	}
	m.freeze.Lock()
	r.lookForIdle(t.Context(), seen, now.Add(2*time.Hour))
	m.freeze.Unlock()
	if got := swapped(t, m.vm.PID()); got != 0 {
		t.Errorf("%d KiB of a sandbox went to swap in the middle of a capture", got)
	}
	r.lookForIdle(t.Context(), seen, now.Add(3*time.Hour))
	if swapped(t, m.vm.PID()) == 0 {
		t.Error("nothing of an idle sandbox went to swap")
	}
	if got := r.sh(t, s, "md5sum /srv/noise"); got != sum {
		t.Errorf("it had %q and has %q", sum, got)
	}
}

// swapped is how many KiB of a process's memory are in swap.
func swapped(t *testing.T, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, ok := strings.Cut(string(text), "\nVmSwap:")
	if _, err := fmt.Sscan(rest, &kib); !ok || err != nil {
		t.Fatalf("no VmSwap: %v", err)
	}
	return kib
}
