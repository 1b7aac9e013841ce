package frozen

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// TestModel runs random lives of sandboxes over one store: writes, snapshots over parents of any depth, thaws, flattens,
// removals and sweeps, in any order. Whatever is listed always reads back as it was when it was frozen.
func TestModel(t *testing.T) {
	t.Parallel()
	root := tempDir(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir := must[string](t)(os.MkdirTemp(root, "model-"))
		defer os.RemoveAll(dir)
		m := newModel(t, rt, dir)
		rt.Repeat(map[string]func(*rapid.T){
			"write":    m.write,
			"disk":     m.writeDisk,
			"giveBack": m.giveBack,
			"snapshot": m.snapshot,
			"thaw":     m.thaw,
			"flatten":  m.flatten,
			"remove":   m.remove,
			"promote":  m.promote,
			"compare":  m.compare,
			"kill":     m.kill,
			"sweep":    m.sweep,
			"":         m.check,
		})
		report := must[*Report](t)(m.store.Check(t.Context(), true))
		for _, p := range report.Problems {
			if p.Kind != ProblemUnreferenced {
				rt.Errorf("problem: %+v", p)
			}
		}
	})
}

const modelPages = 96

type frozenCopy struct{ ram, disk []byte }

type model struct {
	t     *testing.T
	store *Store
	dir   string
	next  int
	live  []*modelVM
	made  map[string]frozenCopy
	ids   []string
}

type modelVM struct {
	*running
	pin string
}

func newModel(t *testing.T, rt *rapid.T, dir string) *model {
	s, err := Open(filepath.Join(dir, "frozen"), Options{MaxLayers: 2, BufferLimit: rapid.SampledFrom([]int64{1, blockSize}).Draw(rt, "buffer")})
	if err != nil {
		rt.Fatal(err)
	}
	m := &model{t: t, store: s, dir: dir, made: map[string]frozenCopy{}}
	template(t, s, "tpl-0", modelPages)
	r := thaw(t, s, "tpl-0")
	m.record("tpl-0", r)
	m.adopt(r)
	return m
}

func (m *model) record(id string, r *running) {
	disk, err := os.ReadFile(r.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	m.made[id] = frozenCopy{ram: bytes.Clone(r.vm.ram), disk: disk}
	m.ids = append(m.ids, id)
}

func (m *model) adopt(r *running) {
	vm := &modelVM{running: r, pin: fmt.Sprintf("s%d", m.next)}
	m.next++
	if err := m.store.Pin(vm.pin, r.parent); err != nil {
		m.t.Fatal(err)
	}
	m.live = append(m.live, vm)
}

func (m *model) pick(rt *rapid.T) *modelVM {
	if len(m.live) == 0 {
		rt.Skip("no VM")
	}
	return m.live[rapid.IntRange(0, len(m.live)-1).Draw(rt, "vm")]
}

func (m *model) pickID(rt *rapid.T) string {
	if len(m.ids) == 0 {
		rt.Skip("nothing frozen")
	}
	return rapid.SampledFrom(m.ids).Draw(rt, "id")
}

func (m *model) write(rt *rapid.T) {
	vm := m.pick(rt)
	start := rapid.Int64Range(0, modelPages-1).Draw(rt, "page")
	fill := rapid.Byte().Draw(rt, "fill") % 4
	for p := start; p < min(modelPages, start+rapid.Int64Range(1, 70).Draw(rt, "pages")); p++ {
		vm.vm.page(p, fill)
	}
}

func (m *model) writeDisk(rt *rapid.T) {
	vm := m.pick(rt)
	block := rapid.Int64Range(0, 255).Draw(rt, "block")
	writeDisk(m.t, vm.disk, 256, map[int64]byte{block: rapid.Byte().Draw(rt, "fill") % 4})
}

func (m *model) giveBack(rt *rapid.T) {
	m.pick(rt).vm.giveBack(rapid.Int64Range(0, modelPages-1).Draw(rt, "page"))
}

func (m *model) snapshot(rt *rapid.T) {
	vm := m.pick(rt)
	vm.vm.tracks = rapid.Bool().Draw(rt, "tracks")
	if vm.vm.tracks { // the guest goes on writing while pages are copied early
		page, fill := rapid.Int64Range(0, modelPages-1).Draw(rt, "late page"), rapid.Byte().Draw(rt, "late fill")%4
		vm.vm.onPause = func() error { vm.vm.page(page, fill); return nil }
	}
	m.next++
	id := fmt.Sprintf("snap-%d", m.next)
	snap := vm.running.snapshot(m.t, m.store, id)
	vm.vm.onPause = nil
	m.record(id, vm.running)
	if rapid.Bool().Draw(rt, "over the last one") {
		vm.parent = snap
		if err := m.store.Pin(vm.pin, snap); err != nil {
			rt.Fatal(err)
		}
	}
}

func (m *model) thaw(rt *rapid.T) {
	if len(m.live) < 4 {
		m.adopt(thaw(m.t, m.store, m.pickID(rt)))
	}
}

func (m *model) flatten(rt *rapid.T) {
	id := m.pickID(rt)
	flat := must[*Manifest](m.t)(m.store.Flatten(m.t.Context(), id, FlattenOptions{ToBase: rapid.Bool().Draw(rt, "to base")}))
	if m.store.NeedsFlatten(flat) {
		rt.Errorf("%s needs to be flattened after it was", id)
	}
}

func (m *model) remove(rt *rapid.T) {
	if len(m.ids) < 2 {
		rt.Skip("the last one stays, or there would be nothing left to do")
	}
	id := m.pickID(rt)
	if err := m.store.Remove(id); err != nil {
		rt.Fatal(err)
	}
	delete(m.made, id)
	for i := range m.ids {
		if m.ids[i] == id {
			m.ids = append(m.ids[:i:i], m.ids[i+1:]...)
			break
		}
	}
}

// promote puts one frozen VM in the place of another. What stands on that goes on.
func (m *model) promote(rt *rapid.T) {
	from, to := m.pickID(rt), m.pickID(rt)
	if from == to {
		rt.Skip("nothing to promote")
	}
	for range 2 { // the second time it has happened
		if is := must[*Manifest](m.t)(m.store.Promote(m.t.Context(), from, to)); is.ID != to || is.MadeAs != from {
			rt.Fatalf("promoted: %+v", is)
		}
	}
	m.made[to] = m.made[from]
	delete(m.made, from)
	m.ids = slices.DeleteFunc(m.ids, func(id string) bool { return id == from })
}

// compare holds the difference of two frozen VMs against their copies.
func (m *model) compare(rt *rapid.T) {
	a, b := m.pickID(rt), m.pickID(rt)
	x := must[*Image](m.t)(m.store.OpenImage(m.t.Context(), a))
	defer x.Close()
	y := must[*Image](m.t)(m.store.OpenImage(m.t.Context(), b))
	defer y.Close()
	got := must[*Difference](m.t)(Compare(m.t.Context(), x, y))
	memory, disk := differing(m.made[a].ram, m.made[b].ram), differing(m.made[a].disk, m.made[b].disk)
	if got.MemoryBytes != totalLength(memory) || got.DiskBytes != totalLength(disk) || len(subtract(disk, got.Disk)) > 0 {
		rt.Errorf("%s and %s differ in %+v, it says %+v", a, b, [2]any{memory, disk}, got)
	}
}

// differing lists the pages in which two slices of one length differ.
func differing(a, b []byte) (out []vmm.Range) {
	for i := 0; i < len(a); i += pageSize {
		if !bytes.Equal(a[i:i+pageSize], b[i:i+pageSize]) {
			out = appendRange(out, vmm.Range{Offset: int64(i), Length: pageSize})
		}
	}
	return out
}

func (m *model) kill(rt *rapid.T) {
	vm := m.pick(rt)
	if err := m.store.Unpin(vm.pin); err != nil {
		rt.Fatal(err)
	}
	os.Remove(vm.disk)
	for i := range m.live {
		if m.live[i] == vm {
			m.live = append(m.live[:i:i], m.live[i+1:]...)
			break
		}
	}
}

func (m *model) sweep(rt *rapid.T) {
	plan := must[*SweepPlan](m.t)(m.store.PlanSweep(m.t.Context(), nil))
	freed := must[int64](m.t)(plan.Execute(m.t.Context()))
	if freed != plan.Bytes {
		rt.Errorf("planned to free %d bytes, freed %d", plan.Bytes, freed)
	}
	again := must[*SweepPlan](m.t)(m.store.PlanSweep(m.t.Context(), nil))
	if len(again.Remove) > 0 {
		rt.Errorf("a second sweep finds %v", again.Remove)
	}
}

func (m *model) check(rt *rapid.T) {
	if len(m.ids) == 0 {
		return
	}
	id := m.pickID(rt)
	img := must[*Image](m.t)(m.store.OpenImage(m.t.Context(), id))
	defer img.Close()
	want := m.made[id]
	got := make([]byte, len(want.ram))
	if err := readFull(img.Memory(), got, 0); err != nil {
		rt.Fatal(err)
	}
	if i := firstDifference(got, want.ram); i >= 0 {
		rt.Fatalf("%s: memory differs at page %d", id, i/pageSize)
	}
	got = make([]byte, len(want.disk))
	if err := readFull(img.Disk(), got, 0); err != nil {
		rt.Fatal(err)
	}
	if i := firstDifference(got, want.disk); i >= 0 {
		rt.Fatalf("%s: disk differs at block %d", id, i/pageSize)
	}
}

func TestRemoveUnknown(t *testing.T) {
	s := openStore(t, Options{})
	wantCode(t, s.Remove("snap-none"), spore.CodeNotFound)
	wantCode(t, s.Remove("../x"), spore.CodeInvalid)
	_, err := s.OpenImage(t.Context(), "snap-none")
	wantCode(t, err, spore.CodeNotFound)
	if errors.Is(err, os.ErrNotExist) == false {
		t.Errorf("%v does not say why", err)
	}
}
