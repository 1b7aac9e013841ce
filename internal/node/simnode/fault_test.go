package simnode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sporevm/spore"
)

// world is two machines on one of which there are a template, a snapshot above it and a sandbox at generation 1 that runs.
type world struct {
	*Cluster
	t     testing.TB
	m     *Machine
	h     *Handle
	tpl   *spore.Template
	box   *spore.Sandbox
	clock time.Time
	fault func(node, step string) error
}

const snap = "snap-1"

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: time.Unix(1_800_000_000, 0).UTC()}
	w.Cluster = NewCluster(ClusterOptions{Now: func() time.Time { return w.clock }, Fault: func(node, step string) error {
		if w.fault != nil {
			return w.fault(node, step)
		}
		return nil
	}})
	w.m = w.New(Options{ID: "a", DiskBytes: 16 << 30})
	w.New(Options{ID: "b", DiskBytes: 16 << 30})
	w.h = w.m.Connect()
	ctx := context.Background()
	_, err := w.h.Recover(ctx, nil)
	w.must(err)
	a, err := w.h.BuildArtifact(ctx, spore.ArtifactSpec{Reference: "app:1"}, nil)
	w.must(err)
	w.tpl = &spore.Template{ID: "tpl-1", ArtifactID: a.ID, KernelID: DefaultComponents.GuestImage, Resources: spore.Resources{VCPUs: 1, MemoryMiB: 256, DiskMiB: 64}}
	_, err = w.h.Bake(ctx, w.tpl, w.tpl.ID, nil)
	w.must(err)
	w.box = &spore.Sandbox{ID: "s1", Generation: 1}
	w.must(w.h.Start(ctx, w.box, w.tpl.ID))
	w.must(w.m.Write("s1", 1, "/a", "content"))
	_, err = w.h.Freeze(ctx, w.box, snap, w.tpl.ID)
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// sound wants that nothing has happened that never may.
func (w *world) sound() {
	w.t.Helper()
	for _, a := range w.Audit() {
		if len(a.Violations) > 0 {
			w.t.Fatalf("on %s: %s", a.Node, strings.Join(a.Violations, "; "))
		}
	}
}

// settled wants that a machine which nobody asks anything of holds nothing for anybody but what is wanted.
func (w *world) settled(frozen []string, vms int) {
	w.t.Helper()
	w.sound()
	a := w.m.Audit()
	var ids []string
	for _, f := range a.Frozen {
		ids = append(ids, f.ID)
		if f.Err != nil {
			w.t.Errorf("%s: %v", f.ID, f.Err)
		}
	}
	if !cmp.Equal(ids, frozen, cmpopts.EquateEmpty()) || len(a.VMs) != vms || a.ReservedBytes != 0 {
		w.t.Errorf("frozen %v, VMs %+v, %d bytes reserved; want %v and %d VMs", ids, a.VMs, a.ReservedBytes, frozen, vms)
	}
	for _, p := range append(a.Pieces, a.Artifacts...) {
		if len(p.Holders) == 0 {
			w.t.Errorf("nobody needs %s, and it is there after a collection", p.ID)
		}
	}
	for _, v := range a.VMs {
		if v.Paused || v.Starting || !v.Held {
			w.t.Errorf("left behind: %+v", v)
		}
	}
}

// operations are calls that change something, and what there is more of when they have succeeded.
var operations = []struct {
	name   string
	do     func(w *world) error
	frozen []string
	vms    int
}{
	{"bake", func(w *world) error { _, err := w.h.Bake(bg, w.tpl, "tpl-2", nil); return err }, []string{"tpl-2"}, 0},
	{"rebake", func(w *world) error { _, err := w.h.Rebake(bg, w.tpl, "tpl-2", nil); return err }, []string{"tpl-2"}, 0},
	{"probe", func(w *world) error { return w.h.Probe(bg, w.tpl, "tpl-1") }, nil, 0},
	{"start", func(w *world) error { return w.h.Start(bg, &spore.Sandbox{ID: "s1", Generation: 2}, snap) }, nil, 1},
	{"freeze", func(w *world) error { _, err := w.h.Freeze(bg, w.box, "snap-2", snap); return err }, []string{"snap-2"}, 0},
	{"flatten", func(w *world) error { _, err := w.h.Flatten(bg, snap, true); return err }, nil, 0},
	{"build", func(w *world) error {
		_, err := w.h.BuildArtifact(bg, spore.ArtifactSpec{Reference: "app:2"}, nil)
		return err
	}, nil, 0},
	{"collect", func(w *world) error { _, err := w.h.Collect(bg, false); return err }, nil, 0},
}

var bg = context.Background()

// TestFaultAtEachStep breaks each operation at each of its steps in each way: either it has happened or it has not, and
// after that the machine can be brought to rest with nothing left over.
func TestFaultAtEachStep(t *testing.T) {
	boom := spore.Errorf(spore.CodeBusy, "it was told to fail")
	for _, op := range operations {
		for _, step := range append(append([]string{"arrive"}, Steps[op.name]...), "answer") {
			for _, fault := range []error{boom, ErrLost, ErrCrash, ErrPowerLoss} {
				t.Run(fmt.Sprintf("%s/%s/%s", op.name, step, strings.ReplaceAll(fault.Error(), " ", "_")), func(t *testing.T) {
					w := newWorld(t)
					w.fault = func(_, at string) error {
						if at == op.name+":"+step {
							return fault
						}
						return nil
					}
					err := op.do(w)
					w.fault = nil
					switch want := spore.CodeUnreachable; {
					case op.name == "collect" && step == "remove" && err == nil: // there was nothing to remove
						return
					case fault == boom && step != "answer" && !errors.Is(err, boom), (fault != boom || step == "answer") && spore.CodeOf(err) != want:
						t.Fatalf("the caller was told: %v", err)
					}
					w.sound()
					done := fault == ErrLost || step == "answer"
					w.rest(t, op.frozen, op.vms, done, fault)
				})
			}
		}
	}
}

// rest brings the machine to rest as a center does and wants nothing left over.
func (w *world) rest(t *testing.T, frozen []string, vms int, done bool, fault error) {
	t.Helper()
	r, err := w.h.Report(bg)
	w.must(err)
	crashed := fault == ErrCrash || fault == ErrPowerLoss
	if r.Recovered == crashed {
		t.Fatalf("recovered: %t", r.Recovered)
	}
	_, err = w.h.Recover(bg, []*spore.Sandbox{w.box})
	w.must(err)
	want := []string{snap, "tpl-1"}
	if done {
		want = append(want, frozen...)
	}
	if crashed || !done { // a crash leaves one VM, the one that was wanted; if its power was lost, as what has ended
		vms = 0
	}
	w.clock = w.clock.Add(2 * time.Hour) // nobody awaits a bake any more
	_, err = w.h.Collect(bg, false)
	w.must(err)
	slices.Sort(want)
	w.settled(want, vms+1)
	w.must(w.h.Settle(bg, "s1", 0))
	for _, id := range want {
		w.must(w.h.Forget(bg, id))
	}
	_, err = w.h.Collect(bg, false)
	w.must(err)
	if a := w.m.Audit(); a.UsedBytes != 0 || a.PromisedMiB != 0 || len(a.Violations) > 0 {
		t.Errorf("when all is gone: %+v", a)
	}
}

// TestSeeds makes calls and pulls levers at random, with faults at random steps: no sum is ever wrong and nothing that is
// needed goes, and one seed does the same each time.
func TestSeeds(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 30
	}
	for seed := range uint64(seeds) {
		first := random(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		if seed%10 == 0 {
			if second := random(t, seed); !cmp.Equal(first, second) {
				t.Fatalf("seed %d went otherwise the second time:\n%s", seed, cmp.Diff(first, second))
			}
		}
	}
}

// random runs one seed and answers all that was said, and what is there in the end.
func random(t *testing.T, seed uint64) []string {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(seed, 1))
	var said []string
	faults := []error{spore.Errorf(spore.CodeBusy, "told to fail"), ErrLost, ErrCrash, ErrPowerLoss, ErrLate, ErrTwice}
	w.fault = func(_, step string) error {
		if r.IntN(40) > 0 {
			return nil
		}
		f := faults[r.IntN(len(faults))]
		if !strings.HasSuffix(step, ":arrive") && (f == ErrLate || f == ErrTwice) {
			return nil
		}
		said = append(said, step+": "+f.Error())
		return f
	}
	ids := []string{"tpl-1", "tpl-2", snap, "snap-2", "snap-3"}
	id := func() string { return ids[r.IntN(len(ids))] }
	box := func() *spore.Sandbox {
		return &spore.Sandbox{ID: fmt.Sprintf("s%d", r.IntN(3)), Generation: 1 + r.IntN(3)}
	}
	peer := w.Machine("b").Connect()
	calls := []func() error{
		func() error { return w.h.Start(bg, box(), id()) },
		func() error { return w.h.Start(bg, box(), id()) },
		func() error { return w.h.Settle(bg, box().ID, r.IntN(3)) },
		func() error { _, err := w.h.Freeze(bg, box(), id(), id()); return err },
		func() error { _, err := w.h.Freeze(bg, box(), id(), id()); return err },
		func() error { _, err := w.h.Suspend(bg, box(), id(), id()); return err },
		func() error { s := box(); return w.h.Wake(bg, s.ID, s.Generation) },
		func() error { _, err := w.h.Bake(bg, w.tpl, id(), nil); return err },
		func() error { t := *w.tpl; t.ID = id(); _, err := w.h.Rebake(bg, &t, id(), nil); return err },
		func() error { return w.h.Probe(bg, w.tpl, id()) },
		func() error { _, err := w.h.Promote(bg, id(), id()); return err },
		func() error { _, err := w.h.Flatten(bg, id(), r.IntN(2) == 0); return err },
		func() error { return w.h.Forget(bg, id()) },
		func() error { _, err := w.h.Collect(bg, r.IntN(2) == 0); return err },
		func() error { _, err := w.h.Recover(bg, []*spore.Sandbox{box(), box()}); return err },
		func() error {
			_, err := w.h.BuildArtifact(bg, spore.ArtifactSpec{Reference: "app:1"}, nil)
			return err
		},
		func() error { return w.h.DropArtifact(bg, w.tpl.ArtifactID) },
		func() error {
			t := *w.tpl
			t.ID = id()
			_, err := peer.Fetch(bg, &t, id(), []string{"a"}, nil)
			return err
		},
		func() error { _, err := peer.Collect(bg, false); return err },
		func() error { _, err := w.h.Usage(bg, id()); return err },
		func() error { _, err := w.h.Check(bg, true, nil); return err },
		func() error {
			s := box()
			return w.m.Write(s.ID, s.Generation, fmt.Sprint("/", r.IntN(3)), fmt.Sprint(r.IntN(9)))
		},
		func() error { s := box(); w.m.EndVM(s.ID, s.Generation, "ended"); return nil },
		func() error { w.m.HarmFrozen(id(), Harm(r.IntN(3))); return nil },
		func() error { return w.m.Deliver(0) },
		func() error { w.clock = w.clock.Add(time.Duration(r.IntN(60)) * time.Minute); return nil },
		func() error { w.m.SetReachable(r.IntN(4) > 0); return nil },
	}
	for range 120 {
		i := r.IntN(len(calls))
		err := calls[i]()
		said = append(said, fmt.Sprintf("%d: %v", i, err))
		if spore.CodeOf(err) == spore.CodeInternal && !strings.Contains(err.Error(), "to itself") {
			t.Errorf("call %d failed by a defect: %v", i, err)
		}
		for _, a := range w.Audit() {
			if len(a.Violations) > 0 {
				t.Errorf("after call %d: %v", i, a.Violations)
				return said
			}
		}
	}
	return append(said, fmt.Sprintf("%+v", w.Audit()))
}
