package simnode

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sporevm/spore"
)

func (w *world) want(err error, code spore.Code) {
	w.t.Helper()
	if got := spore.CodeOf(err); got != code {
		w.t.Fatalf("the error is %q (%v), want %q", got, err, code)
	}
}

// once answers a fault at the first arrival at a step.
func once(step string, fault error) func(string, string) error {
	return func(_, at string) error {
		if at != step || fault == nil {
			return nil
		}
		f := fault
		fault = nil
		return f
	}
}

func TestLateStart(t *testing.T) {
	w := newWorld(t)
	w.fault = once("start:arrive", ErrLate)
	two := &spore.Sandbox{ID: "s1", Generation: 2}
	w.want(w.h.Start(bg, two, snap), spore.CodeUnreachable)
	w.must(w.h.Settle(bg, "s1", 0))
	if late := w.m.Late(); !slices.Equal(late, []string{"start"}) {
		t.Fatalf("on their way: %v", late)
	}
	two.Generation = 9 // what was sent has been sent
	w.must(w.m.Deliver(0))
	if vms := w.m.Audit().VMs; len(vms) != 1 || vms[0].Generation != 2 || vms[0].FrozenID != snap {
		t.Fatalf("VMs: %+v", vms)
	}
	w.want(w.m.Deliver(0), spore.CodeNotFound)
}

func TestTwice(t *testing.T) {
	w := newWorld(t)
	w.fault = once("settle:arrive", ErrTwice)
	w.must(w.h.Settle(bg, "s1", 0))
	w.must(w.h.Start(bg, w.box, snap))
	w.must(w.m.Deliver(0)) // and ends what was started since
	if vms := w.m.Audit().VMs; len(vms) != 0 {
		t.Fatalf("VMs: %+v", vms)
	}
}

func TestUnreachableInTheMiddle(t *testing.T) {
	w := newWorld(t)
	w.fault = func(_, step string) error {
		if step == "freeze:paused" {
			w.m.SetReachable(false)
		}
		return nil
	}
	_, err := w.h.Freeze(bg, w.box, "snap-2", "tpl-1")
	w.want(err, spore.CodeUnreachable)
	_, err = w.h.Report(bg)
	w.want(err, spore.CodeUnreachable)
	w.m.SetReachable(true)
	_, err = w.h.Frozen(bg, "snap-2") // the work went on
	w.must(err)
}

func TestHandles(t *testing.T) {
	w := newWorld(t)
	var told []string
	w.h.OnExit(func(string, int, string) { told = append(told, "first") })
	second := w.m.Connect()
	second.OnExit(func(id string, generation int, reason string) { told = append(told, "second "+id+" "+reason) })
	w.h.Close()
	_, err := w.h.Report(bg)
	w.want(err, spore.CodeUnreachable)
	w.fault = once("exit:report", ErrLost)
	w.m.EndVM("s1", 1, "ended")
	if len(told) > 0 {
		t.Fatalf("told %v of what was kept from them", told)
	}
	w.must(second.Start(bg, &spore.Sandbox{ID: "s2", Generation: 1}, snap)) // the VM of one controller is every one's
	if !w.m.EndVM("s2", 1, "ended") || w.m.EndVM("s2", 1, "ended") {
		t.Fatal("a VM ends once")
	}
	if !slices.Equal(told, []string{"second s2 ended"}) {
		t.Fatalf("told %v", told)
	}
}

func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	next := DefaultComponents
	next.GuestImage, next.Kernel = "krn-2", "6.12.0-sim"
	w.m.SetComponents(next) // guest images lie side by side
	w.must(w.h.Start(bg, &spore.Sandbox{ID: "s2", Generation: 1}, snap))
	r, err := w.h.Report(bg)
	w.must(err)
	if n := r.Node; n.Components != next || len(n.Installed) != 1 || n.Installed[0] != guestPart(DefaultComponents) {
		t.Fatalf("the node says %+v", n)
	}
	next.StateFormat = "sim-2"
	w.m.SetComponents(next)
	w.want(w.h.Start(bg, &spore.Sandbox{ID: "s3", Generation: 1}, snap), spore.CodeStale)
	w.want(w.h.Probe(bg, w.tpl, snap), spore.CodeStale)
	f, err := w.h.Freeze(bg, w.box, "snap-2", snap) // what runs goes on under what it was started with
	w.must(err)
	if f.StateFormat != "sim-1" {
		t.Fatalf("frozen: %+v", f)
	}
	again := *w.tpl
	again.KernelID = next.GuestImage
	f, err = w.h.Rebake(bg, &again, "tpl-2", nil)
	w.must(err)
	if f.Components() != next {
		t.Fatalf("made again with %+v", f.Components())
	}
	w.must(w.h.Start(bg, &spore.Sandbox{ID: "s3", Generation: 1}, "tpl-2"))
	w.m.RemoveKernel(next.GuestImage)
	w.want(w.h.Start(bg, &spore.Sandbox{ID: "s4", Generation: 1}, "tpl-2"), spore.CodeNotFound)
}

func TestHarm(t *testing.T) {
	for _, c := range []struct {
		harm               Harm
		quick, full, start spore.Code
	}{
		{Rot, "", spore.CodeDamaged, ""},
		{Damage, spore.CodeDamaged, spore.CodeDamaged, spore.CodeDamaged},
		{Loss, spore.CodeNotFound, spore.CodeNotFound, spore.CodeNotFound},
	} {
		w := newWorld(t)
		w.m.HarmFrozen(snap, c.harm)
		w.want(w.h.VerifyFrozen(bg, snap, false), c.quick)
		w.want(w.h.VerifyFrozen(bg, snap, true), c.full)
		w.want(w.h.Start(bg, &spore.Sandbox{ID: "s2", Generation: 1}, snap), c.start)
		w.must(w.h.VerifyFrozen(bg, "tpl-1", true))
		w.m.HarmArtifact(w.tpl.ArtifactID, c.harm)
		w.want(w.h.VerifyArtifact(bg, w.tpl.ArtifactID, false), c.quick)
		w.want(w.h.VerifyArtifact(bg, w.tpl.ArtifactID, true), c.full)
		a, err := w.h.BuildArtifact(bg, spore.ArtifactSpec{Reference: "app:1"}, nil)
		w.must(err)
		if a.Reused {
			t.Errorf("harm %d: the artifact was taken for whole", c.harm)
		}
		w.must(w.h.VerifyArtifact(bg, w.tpl.ArtifactID, true))
		w.sound()
	}
}

func TestPeers(t *testing.T) {
	w := newWorld(t)
	b := w.Machine("b").Connect()
	fetch := func(from ...string) error {
		_, err := b.Fetch(bg, &spore.Template{ID: snap}, snap, from, nil)
		return err
	}
	w.Cut("a", "b", true)
	w.want(fetch("a"), spore.CodeUnreachable)
	w.Cut("a", "b", false)
	w.m.HarmFrozen(snap, Rot)
	w.want(fetch("a"), spore.CodeDamaged) // what is sent is verified
	w.m.HarmFrozen(snap, Loss)
	w.want(fetch("a"), spore.CodeNotFound)
	_, err := w.h.Freeze(bg, w.box, snap, "tpl-1")
	w.must(err)
	w.must(fetch("none", "a"))
	w.must(b.Start(bg, &spore.Sandbox{ID: "s2", Generation: 1}, snap)) // the artifact came along
	w.must(w.Machine("b").Write("s2", 1, "/b", "more"))
	w.sound()

	w.Machine("b").Wipe()
	if a := w.Machine("b").Audit(); a.UsedBytes != 0 || len(a.VMs)+len(a.Frozen)+len(a.Artifacts) > 0 || a.Recovered || len(a.Violations) > 0 {
		t.Fatalf("after its disk was lost: %+v", a)
	}
	w.Remove("a")
	w.want(fetch("a"), spore.CodeUnreachable)
	if all := w.Machines(); len(all) != 1 || all[0].ID() != "b" {
		t.Fatalf("machines: %v", all)
	}
	alone := w.New(Options{ID: "c", Alone: true}).Connect()
	_, err = alone.Fetch(bg, w.tpl, "tpl-1", []string{"b"}, nil)
	w.want(err, spore.CodeUnsupported)
}

func TestAgent(t *testing.T) {
	w := newWorld(t)
	at, err := w.h.Agent(bg, "s1", 1)
	w.must(err)
	request := func(method, path, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(bg, method, "http://agent"+path, strings.NewReader(body))
		w.must(err)
		answer, err := at.RoundTrip(r)
		w.must(err)
		raw, err := io.ReadAll(answer.Body)
		w.must(err)
		return answer.StatusCode, string(raw)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		answer             string
	}{
		{"GET", "/health", "", 204, ""},
		{"GET", "/self", "", 200, `{"sandboxID":"s1","generation":1,"frozenID":"tpl-1","node":"a"}`},
		{"GET", "/files?path=/a", "", 200, "content"},
		{"PUT", "/files?path=/b", "two", 204, ""},
		{"GET", "/files?path=/b", "", 200, "two"},
		{"DELETE", "/files?path=/a", "", 204, ""},
		{"DELETE", "/files?path=/a", "", 404, ""},
		{"GET", "/files?path=/a", "", 404, ""},
		{"GET", "/other", "", 404, ""},
	} {
		if status, answer := request(c.method, c.path, c.body); status != c.status || answer != c.answer {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, status, answer, c.status, c.answer)
		}
	}
	_, err = w.h.Freeze(bg, w.box, "snap-2", "tpl-1")
	w.must(err)
	d, err := w.h.Diff(bg, snap, "snap-2", 1)
	w.must(err)
	if len(d.Files) != 1 || d.Files[0].Path != "/a" || d.Files[0].Kind != spore.ChangeRemoved || d.FilesOmitted != 1 {
		t.Errorf("differs: %+v", d)
	}
	w.must(w.h.Start(bg, &spore.Sandbox{ID: "s2", Generation: 1}, snap))
	if at, err = w.h.Agent(bg, "s2", 1); err != nil {
		t.Fatal(err)
	}
	if _, answer := request("GET", "/files?path=/a", ""); answer != "content" {
		t.Errorf("what was frozen reads %q", answer)
	}
	_, err = w.h.Suspend(bg, &spore.Sandbox{ID: "s2", Generation: 1}, "s2-p1", snap)
	w.must(err)
	r, err := http.NewRequestWithContext(bg, "GET", "http://agent/health", nil)
	w.must(err)
	_, err = at.RoundTrip(r)
	w.want(err, spore.CodeUnreachable)
	w.sound()
}

func TestReservations(t *testing.T) {
	w := newWorld(t)
	w.m.FillTo(84)
	var inner error
	w.fault = func(_, step string) error { // a second one, while the first has the room but has not written yet
		if step == "bake:boot" {
			w.fault = nil
			a := w.m.Audit()
			if len(a.Reservations) != 1 || a.ReservedBytes == 0 {
				t.Errorf("reserved: %+v", a.Reservations)
			}
			w.m.FillTo(85)
			w.m.Fill(w.m.filler - 10*mib - a.ReservedBytes)
			_, inner = w.h.Bake(bg, w.tpl, "tpl-3", nil)
		}
		return nil
	}
	_, err := w.h.Bake(bg, w.tpl, "tpl-2", nil)
	w.must(err)
	w.want(inner, spore.CodeNoSpace)
	w.sound()
}

func BenchmarkStartSettle(b *testing.B) {
	w := newWorld(b)
	s := &spore.Sandbox{ID: "s2", Generation: 1}
	for b.Loop() {
		w.must(w.h.Start(bg, s, snap))
		w.must(w.h.Settle(bg, s.ID, 0))
	}
}

func BenchmarkFreezeForget(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		_, err := w.h.Freeze(bg, w.box, "snap-2", snap)
		w.must(err)
		w.must(w.h.Forget(bg, "snap-2"))
	}
}
