package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/sqlite"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/sim/simguest"
)

// house is a center and a node on the simulated engine, whose faults and clock the test controls. All the rest is real.
type house struct {
	*center.Center
	node  *node.Node
	dir   string
	fault atomic.Pointer[sim.Fault]
	hook  atomic.Pointer[func(step string)]
	now   atomic.Pointer[time.Time] // nil: the real time
	stop  func()

	undying atomic.Bool // hypervisors do not end when they are killed
	full    atomic.Bool // rows cannot be written
}

// undyingEngine is an engine whose VMs do not end while the house says so.
type undyingEngine struct {
	vmm.Engine
	house *house
}

type undyingVM struct {
	vmm.VM
	house *house
}

var errUndying = errors.New("it does not end")

func (e undyingEngine) wrap(vm vmm.VM, err error) (vmm.VM, error) {
	if err != nil {
		return nil, err
	}
	return undyingVM{vm, e.house}, nil
}

func (e undyingEngine) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	return e.wrap(e.Engine.Boot(ctx, cfg))
}

func (e undyingEngine) Thaw(ctx context.Context, cfg vmm.Config, from vmm.Image) (vmm.VM, error) {
	return e.wrap(e.Engine.Thaw(ctx, cfg, from))
}

func (e undyingEngine) Adopt(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	return e.wrap(e.Engine.Adopt(ctx, cfg))
}

func (v undyingVM) Kill(ctx context.Context) error {
	if v.house.undying.Load() {
		return errUndying
	}
	return v.VM.Kill(ctx)
}

// fullStore is a store that cannot write while the house says so.
type fullStore struct {
	store.Store
	house *house
}

func (s fullStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	if s.house.full.Load() {
		return spore.Errorf(spore.CodeNoSpace, "the disk is full")
	}
	return s.Store.Update(ctx, fn)
}

func newHouse(t *testing.T, dir string, prepare ...func(*house)) *house {
	t.Helper()
	ctx := t.Context()
	h := &house{dir: dir}
	for _, p := range prepare {
		p(h)
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		quiet = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	engine := sim.New(sim.Options{Guest: simguest.New().Serve, Fault: func(ctx context.Context, id string, step sim.Step) error {
		if f := h.fault.Load(); f != nil {
			return (*f)(ctx, id, step)
		}
		return nil
	}})
	images, err := image.Open(dir, image.Options{Logger: quiet})
	must(err)
	states, err := frozen.Open(filepath.Join(dir, "frozen"), frozen.Options{Log: quiet})
	must(err)
	kernels := kernel.Open(filepath.Join(dir, "kernels"))
	if _, err := kernels.Default(); spore.CodeOf(err) == spore.CodeNotFound {
		vmlinuz, modules := testbed.KernelFiles(t)
		_, err := kernels.Install(ctx, kernel.Source{Kernel: vmlinuz, Modules: modules, Init: initOf(t)}, nil)
		must(err)
	}
	h.node, err = node.Open(ctx, node.Options{ID: "here", DataDir: dir, Engine: undyingEngine{engine, h}, Images: images, Kernels: kernels, Frozen: states, Logger: quiet})
	must(err)
	st, err := sqlite.Open(ctx, filepath.Join(dir, "spore.db"), sqlite.Options{Logger: quiet})
	must(err)
	h.Center = center.New(fullStore{st, h}, []center.Node{h.node}, center.Options{Alone: true, Logger: quiet, Hook: func(step string) {
		if f := h.hook.Load(); f != nil {
			(*f)(step)
		}
	}, Now: func() time.Time {
		if at := h.now.Load(); at != nil {
			return *at
		}
		return time.Now()
	}})
	must(h.Start(ctx))
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		end := context.WithoutCancel(ctx)
		must(errors.Join(h.Stop(end), h.node.Close(end), st.Close(), states.Close()))
	}
	t.Cleanup(h.stop)
	return h
}

func initOf(t *testing.T) []byte {
	t.Helper()
	init, err := os.ReadFile(testbed.SporeInit(t))
	if err != nil {
		t.Fatal(err)
	}
	return init
}

// wait waits for a job and answers its error.
func (h *house) wait(t *testing.T, j *spore.Job) error {
	t.Helper()
	var last *spore.Job
	if err := h.WatchJob(t.Context(), j.ID, 0, func(j *spore.Job, _ []spore.LogLine) error { last = j; return nil }); err != nil {
		t.Fatal(err)
	}
	if last.Error != nil {
		return &spore.Error{Code: last.Error.Code, Message: last.Error.Message, Field: last.Error.Field}
	}
	return nil
}

func (h *house) build(t *testing.T, name string) *spore.Template {
	t.Helper()
	tpl, j, err := h.BuildTemplate(t.Context(), center.Idempotency{}, center.BuildRequest{
		Name: name, Image: testbed.Ref(testbed.Image(t, "static")), Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.wait(t, j); err != nil {
		t.Fatal(err)
	}
	if tpl, err = h.Template(t.Context(), tpl.ID); err != nil {
		t.Fatal(err)
	}
	return tpl
}

func (h *house) create(t *testing.T, template string, ttl time.Duration, onEnd spore.EndAction) *spore.Sandbox {
	t.Helper()
	s, err := h.CreateSandbox(t.Context(), center.Idempotency{}, center.CreateRequest{Template: template, TTL: ttl, OnEnd: onEnd})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *house) state(t *testing.T, id string) spore.SandboxState {
	t.Helper()
	s, err := h.Sandbox(t.Context(), id)
	if spore.CodeOf(err) == spore.CodeNotFound {
		return spore.SandboxKilled
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.State
}

// failing makes every operation of the engine fail at a step.
func (h *house) failing(at sim.Step) {
	f := sim.Fault(func(_ context.Context, _ string, step sim.Step) error {
		if step == at {
			return spore.Errorf(spore.CodeUnsupported, "it was told to fail")
		}
		return nil
	})
	h.fault.Store(&f)
}

func (h *house) well() { h.fault.Store(nil) }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// at makes the next arrival at a step of an operation, and no later one, call do.
func (h *house) at(step string, do func()) {
	var once sync.Once
	f := func(at string) {
		if at == step {
			once.Do(do)
		}
	}
	h.hook.Store(&f)
}
