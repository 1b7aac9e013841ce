package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/vmm"
)

// bootTimeout bounds the time from power-on to the agent's first answer. Software emulation on a busy machine takes
// tens of seconds.
const bootTimeout = 5 * time.Minute

// Bake boots a template on a blank disk, waits until it is ready and freezes it under the id as.
func (n *Node) Bake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error) {
	defer n.holds.used(t.ArtifactID) // by now the frozen state holds it
	if f, err := n.Frozen(ctx, as); !isNotFound(err) {
		return f, err
	}
	return n.bake(ctx, baking{
		template: t, as: as, artifact: t.ArtifactID, note: note,
		disk: func(ctx context.Context, path string) error {
			blank, err := image.BlankDisk(ctx, n.path("blank"), int64(t.Resources.DiskMiB)*mib)
			if err != nil {
				return err
			}
			return frozen.CloneFile(ctx, path, blank)
		},
	})
}

// bake boots and freezes, with room for it reserved and what it stands on held.
func (n *Node) bake(ctx context.Context, b baking) (*spore.Frozen, error) {
	release, err := n.guard.reserve("freezing "+b.template.ID, n.bakedBytes(b), toKeep)
	if err != nil {
		return nil, err
	}
	defer release()
	for _, id := range []string{b.artifact, b.template.KernelID} {
		n.holds.hold(id)
		defer n.holds.drop(id)
	}
	f, err := n.bakeOnce(ctx, b)
	if errors.Is(err, errEngineChanged) { // it is known now what the engine can do here
		f, err = n.bakeOnce(ctx, b)
	}
	return f, err
}

// errEngineChanged is when the engine found out, as it booted its first guest, that it can do better than it had said.
var errEngineChanged = errors.New("the engine is another than when the boot began")

func (n *Node) bakeOnce(ctx context.Context, b baking) (*spore.Frozen, error) {
	t := b.template
	bundle, err := n.opt.Kernels.Get(t.KernelID)
	if err != nil {
		return nil, err
	}
	info, err := n.Engine(ctx)
	if err != nil {
		return nil, err
	}
	shape := frozen.Shape{
		VCPUs: t.Resources.VCPUs, MemoryMiB: t.Resources.MemoryMiB, Kernel: bundle.ID, Artifact: b.artifact,
		Drives: []frozen.Drive{{ID: "rootfs", ReadOnly: true}, {ID: "disk"}}, Engine: frozen.Engine(info), NIC: t.NIC,
		AgentVersion: bundle.AgentVersion, KernelVersion: bundle.KernelVersion,
	}
	if shape.Extra, err = extraOf(t.Process); err != nil {
		return nil, err
	}
	id := newMachineID()
	draft, err := n.opt.Frozen.Begin(ctx, b.spec(shape))
	if err != nil {
		return nil, err
	}
	defer draft.Discard()
	if err := n.cap.take(ctx, id, shape.MemoryMiB); err != nil {
		return nil, err
	}
	m, err := n.boot(ctx, id, shape, draft.BaseMemoryPath(), b.disk)
	if err != nil {
		n.cap.give(id)
		return nil, err
	}
	n.cap.landed(id)
	defer func() {
		if err := n.end(context.WithoutCancel(ctx), m); err != nil {
			n.log.Error("ending a template's VM", "vm", m.id, "err", err)
		}
	}()
	if now, err := n.Engine(ctx); err != nil {
		return nil, err
	} else if now != info {
		return nil, errEngineChanged
	}
	if err := n.prepare(ctx, m, t, b.note); err != nil {
		return nil, err
	}
	b.note("freezing")
	start := time.Now()
	if _, err := draft.CaptureBoot(ctx, m.vm, n.diskPath(id)); err != nil {
		return nil, err
	}
	m.ending.Store(true)
	kill, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := m.vm.Kill(kill); err != nil {
		return nil, err
	}
	manifest, err := draft.Commit(ctx)
	if err != nil {
		return nil, err
	}
	f, err := n.facts(manifest)
	if err != nil {
		return nil, err
	}
	f.Paused, f.Total = draft.Timings().Paused, time.Since(start)
	return f, nil
}

// boot starts a VM on the disk that is made for it. On error nothing is left.
func (n *Node) boot(ctx context.Context, id string, shape frozen.Shape, memory string, disk func(ctx context.Context, path string) error) (_ *machine, err error) {
	o := owner{Shape: shape}
	if o.Config, err = n.config(ctx, id, shape, memory); err != nil {
		return nil, err
	}
	if _, err := n.plug(ctx, &o, nil); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if clear := n.clear(id); clear != nil {
				n.log.Error("clearing after a failed boot", "vm", id, "err", clear)
			}
		}
	}()
	if _, err := n.makeDir(id, o); err != nil {
		return nil, err
	}
	if err := disk(ctx, n.diskPath(id)); err != nil {
		return nil, err
	}
	vm, err := n.opt.Engine.Boot(ctx, o.Config)
	if err != nil {
		return nil, err
	}
	return n.newMachine(id, vm, o), nil
}

// prepare brings a booted VM to where its template is ready to be frozen.
func (n *Node) prepare(ctx context.Context, m *machine, t *spore.Template, note func(string)) error {
	note("booting")
	start := time.Now()
	bootCtx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	a, err := m.connectWhileAlive(bootCtx)
	if err != nil {
		return m.unreached(ctx, err, "the guest did not boot")
	}
	note(fmt.Sprintf("the agent answered after %s", time.Since(start).Round(time.Millisecond)))
	if err := configure(bootCtx, a, t.Process, note); err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	if err := m.ready(ctx, a, t.Readiness, note); err != nil {
		return err
	}
	settleCtx, cancelSettle := context.WithTimeout(ctx, greetTimeout)
	defer cancelSettle()
	if err := a.Warm(settleCtx); err != nil { // what a first command needs is then in every thaw's memory
		return m.unreached(ctx, err, "the guest did not run a command")
	}
	if err := a.Quiesce(settleCtx); err != nil {
		return m.unreached(ctx, err, "the guest did not settle")
	}
	return nil
}

// configure gives the guest what its image wants run. An image without a command makes a template all the same: its
// sandboxes are there for the commands that people run in them.
func configure(ctx context.Context, a *guest.Agent, p spore.Process, note func(string)) error {
	entry, err := a.Configure(ctx, guest.Config{
		Entrypoint: p.Entrypoint, Cmd: p.Cmd, Env: p.Env, User: p.User, WorkingDir: cmp.Or(p.WorkDir, "/"), StopSignal: p.StopSignal,
	})
	if err != nil {
		return err
	}
	if len(p.Entrypoint)+len(p.Cmd) == 0 {
		note("the image names no command; only the agent runs")
	} else {
		note(fmt.Sprintf("the image's command is %s", entry.State))
	}
	return nil
}

// connectWhileAlive is connect, given up as soon as the VM has ended.
func (m *machine) connectWhileAlive(ctx context.Context) (*guest.Agent, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go m.cancelAtExit(ctx, cancel)
	a, err := m.connect(ctx)
	if err != nil && m.vm.State() == vmm.StateExited {
		err = errors.Join(m.vm.Err(), err)
	}
	return a, err
}

// cancelAtExit ends a wait for a guest when its VM has ended; it returns when ctx ends.
func (m *machine) cancelAtExit(ctx context.Context, cancel context.CancelFunc) {
	select {
	case <-m.vm.Done():
		cancel()
	case <-ctx.Done():
	}
}

// probe is a template's readiness as the agent is asked for it.
func probe(r spore.Readiness) guest.Probe {
	p := guest.Probe{Command: r.Command, Port: r.TCPPort, HTTPPath: r.HTTPPath, Interval: 200 * time.Millisecond}
	if r.HTTPPath != "" {
		p.HTTPPort = cmp.Or(r.HTTPPort, 80)
	}
	return p
}

// ready waits for a template's readiness probe. One that never passes is answered with what the guest said last.
func (m *machine) ready(ctx context.Context, a *guest.Agent, r spore.Readiness, note func(string)) error {
	timeout := r.Timeout
	if timeout == 0 {
		timeout = spore.DefaultReadinessTimeout
	}
	probeCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	note("waiting for readiness: " + r.String())
	start := time.Now()
	go m.cancelAtExit(probeCtx, cancel)
	last := a.Ready(probeCtx, probe(r))
	if last == nil {
		note(fmt.Sprintf("ready after %s", time.Since(start).Round(time.Millisecond)))
		return nil
	}
	if m.vm.State() == vmm.StateExited {
		return m.unreached(ctx, m.vm.Err(), "the guest ended before it was ready")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := spore.Invalidf("readiness", "the probe (%s) did not pass within %s: %v", r, timeout, last).WithCause(last).
		WithHint("give it more time, or look at what the guest said")
	logCtx, cancelLogs := context.WithTimeout(ctx, 5*time.Second)
	defer cancelLogs()
	if out, err := readLogs(logCtx, a, 4<<10); err == nil && len(out) > 0 {
		e.Message += "\nthe image's process said last:\n" + lastLines(string(out), 10)
	}
	if tail := consoleTail(m.vm); tail != "" {
		e.Message += "\nthe console's last lines:\n" + tail
	}
	return e
}

func consoleTail(vm vmm.VM) string {
	raw, err := vm.Console(2 << 10)
	if err != nil {
		return ""
	}
	return lastLines(string(raw), 10)
}

// lastLines is the end of a text that a guest wrote, made fit to print.
func lastLines(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && !(r >= 0x80 && r < 0xa0) {
			return r
		}
		return -1
	}, text)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func isNotFound(err error) bool { return spore.CodeOf(err) == spore.CodeNotFound }
