package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sporevm/spore"
)

var errInjected = errors.New("injected")

// steps counts steps of a manager, and makes those fail that are asked for.
type steps struct {
	mu   sync.Mutex
	seen []string
	fail func(n int) bool // by number, from 0
}

func (s *steps) step(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.seen)
	s.seen = append(s.seen, name)
	if s.fail != nil && s.fail(n) {
		return fmt.Errorf("%w at %q", errInjected, name)
	}
	return nil
}

// calm ends the failures.
func (s *steps) calm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = nil
}

// die makes a manager leave everything as it is, as kill -9 does: the kernel closes its sockets, and nobody does anything else.
func die(t *testing.T, m *Manager) {
	t.Helper()
	m.mu.Lock()
	m.closed = true
	var all []*space
	for _, s := range m.spaces {
		all = append(all, s)
	}
	m.mu.Unlock()
	m.stop()
	m.filling.Wait()
	for _, s := range all {
		if err := s.closeNames(); err != nil {
			t.Fatal(err)
		}
	}
	m.host.Close()
	m.hostNS.Close()
}

var (
	names1 = spore.Egress{AllowDomains: []string{"a.example.com", "b.example.com"}}
	names2 = spore.Egress{AllowDomains: []string{"b.example.com"}, AllowCIDRs: []string{hostAddr.String()}}
)

// life is what is done with one network.
func life(ctx context.Context, m *Manager) error {
	l := spore.Limits{NetworkInMbps: 100, NetworkOutMbps: 100}
	if _, err := m.Attach(ctx, "a", isolated(names1), l); err != nil {
		return err
	}
	if err := m.Update(ctx, "a", isolated(names2), l); err != nil {
		return err
	}
	return m.Detach(ctx, "a")
}

// count answers the steps of a life without trouble.
func (w *world) count() []string {
	w.t.Helper()
	m := w.serving()
	var s steps
	m.step = s.step
	if err := life(w.t.Context(), m); err != nil {
		w.t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		w.t.Fatal(err)
	}
	return s.seen
}

// Whatever step fails, and even if the one that undoes it fails as well, nothing is left once the network has been detached.
func TestFailureAtEachStep(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	all := w.count()
	if len(all) < 20 {
		t.Fatalf("only the steps %v", all)
	}
	for n, name := range all {
		for _, times := range []int{1, 3} {
			m := w.serving()
			s := steps{fail: func(k int) bool { return k >= n && k < n+times }}
			m.step = s.step
			err := life(t.Context(), m)
			if err == nil || !strings.Contains(err.Error(), errInjected.Error()) {
				t.Errorf("%s: the failure is not told: %v", name, err)
			}
			for again := 0; ; again++ { // it is the caller who tries again
				if err = m.Detach(t.Context(), "a"); err == nil || again == times {
					break
				}
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			s.calm() // one that is left would come upon Clean, or not: what is abandoned is removed beside it
			if _, err := m.Clean(t.Context(), nil); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if err := m.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if after := w.traces(); after != before {
				t.Fatalf("%s, %d times: left behind:\n%s\nthere was:\n%s", name, times, after, before)
			}
		}
	}
}

// Whenever a server dies, the next one, or nobody but `spore doctor --clean`, removes what it left.
func TestDeathAtEachStep(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	for n, name := range w.count() {
		for _, way := range []string{"recover", "clean"} {
			dir := t.TempDir()
			dead := w.manager(dir)
			if _, err := dead.Recover(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			s := steps{fail: func(k int) bool { return k >= n }}
			dead.step = s.step
			if err := life(t.Context(), dead); !errors.Is(err, errInjected) {
				t.Fatalf("%s: %v", name, err)
			}
			die(t, dead)
			m := w.manager(dir)
			if way == "recover" {
				if _, err := m.Recover(t.Context(), nil); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			} else {
				found, err := m.Leftovers(nil)
				if err != nil || len(found) == 0 && n > 0 {
					t.Errorf("%s: nothing is left, which is not so: %v", name, err)
				}
				removed, err := m.Clean(t.Context(), nil)
				if err != nil || len(removed) != len(found) {
					t.Errorf("%s: of %v, %v were removed: %v", name, found, removed, err)
				}
				if left, err := m.Leftovers(nil); err != nil || len(left) > 0 {
					t.Errorf("%s: still there: %v, %v", name, left, err)
				}
			}
			if err := m.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if after := w.traces(); after != before {
				t.Fatalf("%s, %s: left behind:\n%s\nthere was:\n%s", name, way, after, before)
			}
		}
	}
}

// A change that the old server began is over when the new one is there: nothing that only the old policy allowed goes on.
func TestDeathInChange(t *testing.T) {
	w := newWorld(t)
	count := func() (first, last int) {
		m := w.serving()
		mustAttach(t, m, "a", spore.Egress{})
		var s steps
		m.step = s.step
		change(t, m, "a", spore.Egress{Internet: off})
		return 1, len(s.seen) // the first is the record; before it, nothing has begun
	}
	first, last := count()
	for n := first; n < last; n++ {
		dir := t.TempDir()
		old := w.manager(dir)
		if _, err := old.Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		g := w.plug(mustAttach(t, old, "a", spore.Egress{}))
		flow, err := g.dial("tcp", worldEcho, patience)
		if err != nil {
			t.Fatal(err)
		}
		if err := talk(flow, patience); err != nil {
			t.Fatal(err)
		}
		s := steps{fail: func(k int) bool { return k >= n }}
		old.step = s.step
		if err := old.Update(t.Context(), "a", isolated(spore.Egress{Internet: off}), spore.Limits{}); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		// Its way back failed as well, at the first step; so what is on disk is what was to be.
		die(t, old)
		m := w.manager(dir)
		missing, err := m.Recover(t.Context(), []string{"a"})
		if err != nil || len(missing) > 0 {
			t.Fatalf("step %d: %v, %v", n, missing, err)
		}
		if talk(flow, unanswered) == nil || g.reach("tcp", worldEcho, unanswered) == nil {
			t.Errorf("died before step %d of a change: the old policy goes on", n)
		}
		flow.Close()
		g.stop()
		closeAll(t, m)
	}
}

func TestRecoverKeeps(t *testing.T) {
	w := newWorld(t)
	zone := map[string]netip.Addr{"a.example.com": publicA, "b.example.com": publicB}
	at := localNames(t, zone)
	serve := func(o *Options) { o.Nameservers, o.PoolSize = []netip.AddrPort{at}, 2 }
	dir := t.TempDir()
	before := w.traces()
	old := w.manager(dir, serve)
	if _, err := old.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	first := mustAttach(t, old, "keep", names1)
	mustAttach(t, old, "drop", spore.Egress{})
	broken := mustAttach(t, old, "broken", spore.Egress{})
	g := w.plug(first)
	if _, err := g.lookup("a.example.com", first); err != nil {
		t.Fatal(err)
	}
	flow, err := g.dial("tcp", worldEcho, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	if err := talk(flow, patience); err != nil {
		t.Fatal(err)
	}
	die(t, old)
	if err := talk(flow, patience); err != nil {
		t.Errorf("a flow while there is no server: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, broken.Name+recordSuffix), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}

	m := w.manager(dir, serve)
	if left, err := m.Leftovers([]string{"keep"}); err != nil || len(left) < 6 || strings.Contains(fmt.Sprint(left), first.Name) {
		t.Errorf("left over are %v, %v", left, err)
	}
	missing, err := m.Recover(t.Context(), []string{"keep", "broken", "never"})
	if err != nil {
		t.Fatal(err)
	}
	if len(missing) != 2 || spore.CodeOf(missing["broken"]) != spore.CodeNotFound || spore.CodeOf(missing["never"]) != spore.CodeNotFound {
		t.Errorf("missing are %v", missing)
	}
	if l, err := m.Link("keep"); err != nil || l != first {
		t.Errorf("the link is %v, %v", l, err)
	}
	if err := talk(flow, patience); err != nil {
		t.Errorf("a flow that was there before: %v", err)
	}
	if err := g.reach("udp", worldEcho, patience); err != nil {
		t.Errorf("a pin of before: %v", err)
	}
	if addrs, err := g.lookup("b.example.com", first); err != nil || len(addrs) != 1 {
		t.Errorf("names: %v, %v", addrs, err)
	}
	if err := g.reach("tcp", netip.AddrPortFrom(publicB, echoPort), patience); err != nil {
		t.Errorf("a pin of now: %v", err)
	}
	// Once more changes nothing for what is there.
	if missing, err := m.Recover(t.Context(), []string{"keep"}); err != nil || len(missing) > 0 {
		t.Errorf("once more: %v, %v", missing, err)
	}
	change(t, m, "keep", names2)
	if talk(flow, unanswered) == nil {
		t.Error("a flow of before is not cut by a change of now")
	}
	closeAll(t, m)
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}

// A server that stops in order leaves the networks of sandboxes that go on, and nothing else.
func TestCloseKeeps(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	old := w.manager(dir, func(o *Options) { o.PoolSize = 2 })
	if _, err := old.Attach(t.Context(), "a", isolated(spore.Egress{}), spore.Limits{}); err == nil {
		t.Error("attached before Recover")
	}
	if _, err := old.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	l := mustAttach(t, old, "a", spore.Egress{})
	g := w.plug(l)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := old.Attach(t.Context(), "b", isolated(spore.Egress{}), spore.Limits{}); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("attached after Close: %v", err)
	}
	if err := g.reach("tcp", worldEcho, patience); err != nil {
		t.Errorf("after the server's end: %v", err)
	}
	if n := strings.Count(w.traces(), "namespace "); n != 1 {
		t.Errorf("%d namespaces are left", n)
	}
	m := w.manager(dir)
	if removed, err := m.Clean(t.Context(), []string{"a"}); err != nil || len(removed) > 0 {
		t.Errorf("removed %v of what is in use, %v", removed, err)
	}
	if err := g.reach("tcp", worldEcho, patience); err != nil {
		t.Errorf("after the cleaning: %v", err)
	}
	if missing, err := m.Recover(t.Context(), []string{"a"}); err != nil || len(missing) > 0 {
		t.Errorf("%v, %v", missing, err)
	}
}

// What a server has left whose directory is gone is removed by any other that is told to clean, but for what a VM uses.
func TestOrphans(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	dir := filepath.Join(t.TempDir(), "gone")
	dead := w.manager(dir, func(o *Options) { o.PoolSize = 1 })
	if _, err := dead.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	used := mustAttach(t, dead, "used", spore.Egress{})
	mustAttach(t, dead, "unused", spore.Egress{})
	g := w.plug(used)
	if err := g.ping(publicA, patience); err != nil {
		t.Fatal(err)
	}
	die(t, dead)
	m := w.serving()
	if left, err := m.Leftovers(nil); err != nil || len(left) > 0 {
		t.Errorf("while the directory is there: %v, %v", left, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	removed, err := m.Clean(t.Context(), nil)
	if err != nil || len(removed) < 2 || removed[0].Dir != dir || strings.Contains(fmt.Sprint(removed), used.Name) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if err := g.ping(publicA, patience); err != nil {
		t.Errorf("what a VM uses: %v", err)
	}
	g.stop()
	if _, err := m.Clean(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}

func FuzzRecord(f *testing.F) {
	good, err := json.Marshal(record{Slot: 7, Outer: netip.MustParseAddr("198.19.0.14"), ID: "a", Network: isolated(names1), Limits: spore.Limits{NetworkInMbps: 5}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"slot":-1}`))
	f.Add([]byte(`{"slot":1,"outer":"::1"}`))
	f.Add([]byte(`{"slot":1,"outer":"198.19.0.2","id":"x","network":{"mode":"isolated","egress":{"allowCIDRs":["::/0"]}}}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRecord(raw)
		if err != nil {
			return
		}
		s := newSpace("spore-abcde", r.Slot, r.Outer)
		if len(s.name) > 15 || !s.inner.Is4() || s.inner == s.outer {
			t.Fatalf("a space %+v", s)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
	})
}
