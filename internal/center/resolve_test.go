package center_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// preview asks what a create would do.
func (w *world) preview(req center.CreateRequest) *center.Preview {
	w.t.Helper()
	p, err := w.PreviewSandbox(w.t.Context(), req)
	w.ok(err)
	return p
}

// lands fails the test unless a create goes to a node, as its preview says. The sandbox is killed again.
func (w *world) lands(req center.CreateRequest, node string) {
	w.t.Helper()
	if p := w.preview(req); p.NodeID != node || p.Err != nil {
		w.t.Errorf("%+v is to land on %q: %v", req, p.NodeID, p.Err)
	}
	s, err := w.CreateSandbox(w.t.Context(), center.Idempotency{}, req)
	w.ok(err)
	if s.NodeID != node {
		w.t.Errorf("%+v lands on %s", req, s.NodeID)
	}
	w.ok(w.KillSandbox(w.t.Context(), s.ID))
	w.pass(15 * time.Second) // its node reports that it has the room again
}

// refuses fails the test unless a create is refused, and its preview says the same, naming words.
func (w *world) refuses(req center.CreateRequest, code spore.Code, reason spore.Reason, words ...string) {
	w.t.Helper()
	_, err := w.CreateSandbox(w.t.Context(), center.Idempotency{}, req)
	w.wants(err, code, reason)
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			w.t.Errorf("%v does not name %q", err, word)
		}
	}
	if p := w.preview(req); p.Err == nil || p.Err.Code != code || p.Err.Reason != reason || p.NodeID != "" {
		w.t.Errorf("the preview of %+v says %+v, on %q", req, p.Err, p.NodeID)
	}
}

// TestPlacement chooses nodes: of all that have the template ready the one with the most room, of those that are named one, and of
// the preferred node no other.
func TestPlacement(t *testing.T) {
	inWorld(t, 4, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1", "n2", "n3"}})
		w.sandbox("base", "n1") // n1 has less room than the others
		w.pass(30 * time.Second)

		w.lands(center.CreateRequest{Template: "base"}, "n2")
		w.lands(center.CreateRequest{Template: "base", Nodes: []string{"n1"}}, "n1")
		w.lands(center.CreateRequest{Template: "base", Nodes: []string{"n4", "n3", "n1"}}, "n3") // what has no replica is no candidate
		w.lands(center.CreateRequest{Template: "base", PreferredNode: "n1"}, "n1")
		w.lands(center.CreateRequest{Template: "base", PreferredNode: "n3", Nodes: []string{"n1", "n3"}}, "n3")

		w.refuses(center.CreateRequest{Template: "base", Nodes: []string{"n4"}}, spore.CodeConflict, spore.ReasonNoReadyReplica, "base")
		w.refuses(center.CreateRequest{Template: "base", PreferredNode: "n4"}, spore.CodeConflict, spore.ReasonNoReadyReplica, "base")
		w.refuses(center.CreateRequest{Template: "base", PreferredNode: "n2", Nodes: []string{"n1", "n3"}}, spore.CodeConflict, spore.ReasonNoReadyReplica, "base")
		w.refuses(center.CreateRequest{Template: "base", Nodes: []string{"n1", "n9"}}, spore.CodeInvalid, spore.ReasonNoNodes, "n9")
		w.refuses(center.CreateRequest{Template: "base", PreferredNode: "n9"}, spore.CodeInvalid, spore.ReasonNoNodes, "n9")

		// No falling back from the preferred node, whatever keeps it.
		_, err := w.DrainNode(ctx, "n3", true)
		w.ok(err)
		w.refuses(center.CreateRequest{Template: "base", PreferredNode: "n3"}, spore.CodeConflict, spore.ReasonNoReadyReplica, "n3: the node is being drained")
		w.lands(center.CreateRequest{Template: "base", Nodes: []string{"n3", "n1"}}, "n1")
		upgrade(w.machines[1])
		w.pass(30 * time.Second)
		w.refuses(center.CreateRequest{Template: "base", PreferredNode: "n2"}, spore.CodeStale, spore.ReasonStaleNeedsRedo, "n2")
		w.lands(center.CreateRequest{Template: "base"}, "n1")
		w.machines[0].SetReachable(false)
		w.pass(2 * time.Minute)
		w.refuses(center.CreateRequest{Template: "base", PreferredNode: "n1"}, spore.CodeConflict, spore.ReasonNoReadyReplica, "n1: the node is UNREACHABLE")
	})
}

// TestSnapshotPlacement has snapshots start where they were taken, as long as nobody says otherwise and that node may be used.
func TestSnapshotPlacement(t *testing.T) {
	inWorld(t, 3, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{Min: 3})
		point := w.snapshot(w.sandbox("base", "n2").ID)
		if point.OriginNode != "n2" {
			t.Fatalf("it was taken on %s", point.OriginNode)
		}
		ask := center.CreateRequest{Template: point.ID}
		w.lands(ask, "n2")
		ask.PreferredNode = "n1"
		w.refuses(ask, spore.CodeConflict, spore.ReasonNoReadyReplica, point.ID) // it is on n2 only
		_, err := w.UpdateTemplate(ctx, point.ID, center.TemplateUpdate{Replicas: &spore.ReplicaPolicy{Min: 3}})
		w.ok(err)
		w.pass(2 * time.Minute)
		w.lands(ask, "n1")
		ask.PreferredNode = ""
		w.lands(ask, "n2") // though the others have more room
		w.lands(center.CreateRequest{Template: "base"}, "n1")
		ask.Nodes = []string{"n3"}
		w.lands(ask, "n3")
		scope, err := w.ReadyNodes(ctx, point.ID)
		if err != nil || !slices.Equal(scope.Ready, []string{"n1", "n2", "n3"}) {
			t.Errorf("%+v, %v", scope, err)
		}
		_, err = w.DrainNode(ctx, "n2", true)
		w.ok(err)
		w.lands(center.CreateRequest{Template: point.ID}, "n1") // that was no more than a wish
		ask = center.CreateRequest{Template: point.ID, PreferredNode: "n2"}
		w.refuses(ask, spore.CodeConflict, spore.ReasonNoReadyReplica, point.ID)
	})
}

// TestResolve makes requests complete: the caller's upon what the template keeps.
func TestResolve(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base, j, err := w.BuildTemplate(ctx, center.Idempotency{}, center.BuildRequest{
			Name: "base", Image: app, Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
			Defaults: spore.CreateDefaults{
				Env: map[string]string{"A": "base", "B": "base"}, Labels: map[string]string{"team": "base", "tier": "base"},
				TTLSeconds: 600, OnEnd: spore.EndPause,
			},
		})
		w.ok(err)
		w.watched(j.ID)
		_, err = w.PutAlias(ctx, "prod", "", center.AliasRequest{Template: "base"})
		w.ok(err)
		before := len(w.sandboxes())
		for name, c := range map[string]struct {
			ask, want center.CreateRequest
		}{
			"nothing of its own": {
				center.CreateRequest{Template: "prod"},
				center.CreateRequest{
					Template: "prod", TTL: 10 * time.Minute, OnEnd: spore.EndPause,
					Env: map[string]string{"A": "base", "B": "base"}, Labels: map[string]string{"team": "base", "tier": "base"},
				},
			},
			"the caller's upon the template's": {
				center.CreateRequest{
					Template: base.ID, TTL: time.Hour, OnEnd: spore.EndKill,
					Env: map[string]string{"B": "mine", "C": "mine"}, Labels: map[string]string{"team": "mine"},
				},
				center.CreateRequest{
					Template: base.ID, TTL: time.Hour, OnEnd: spore.EndKill,
					Env: map[string]string{"A": "base", "B": "mine", "C": "mine"}, Labels: map[string]string{"team": "mine", "tier": "base"},
				},
			},
		} {
			p := w.preview(c.ask)
			r := p.Request
			if r.TTL != c.want.TTL || r.OnEnd != c.want.OnEnd || !maps.Equal(r.Env, c.want.Env) || !maps.Equal(r.Labels, c.want.Labels) ||
				p.Template.ID != base.ID || p.Resources != base.Resources || p.Err != nil {
				t.Errorf("%s: it becomes %+v, %v", name, r, p.Err)
			}
			var stages []string
			for _, s := range p.Stages {
				stages = append(stages, s.Stage)
			}
			if got := strings.Join(stages, " "); got != "request locality kind bind" {
				t.Errorf("%s: its stages are %s", name, got)
			}
			if now := len(w.sandboxes()); now != before {
				t.Errorf("%s: a preview made %d sandboxes", name, now-before)
			}
			s, err := w.CreateSandbox(ctx, center.Idempotency{}, c.ask)
			w.ok(err)
			if s.OnEnd != c.want.OnEnd || !maps.Equal(s.Env, c.want.Env) || !maps.Equal(s.Labels, c.want.Labels) || s.EndsAt.Sub(s.CreatedAt) != c.want.TTL {
				t.Errorf("%s: the sandbox is %+v", name, s)
			}
			if name == "nothing of its own" { // what is taken of a sandbox keeps what that was given
				point := w.snapshot(s.ID)
				if r := w.preview(center.CreateRequest{Template: point.ID}).Request; !maps.Equal(r.Env, s.Env) || !maps.Equal(r.Labels, s.Labels) || r.TTL != 0 {
					t.Errorf("of its snapshot it becomes %+v", r)
				}
			}
			before = len(w.sandboxes())
		}
	})
}

// TestLocality asks whether a template can start, and why not on which node. Nothing is distributed for the asking.
func TestLocality(t *testing.T) {
	inWorld(t, 5, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{Nodes: []string{"n1", "n2", "n3", "n4"}})
		_, err := w.DrainNode(ctx, "n2", true)
		w.ok(err)
		upgrade(w.machines[2])
		w.machines[3].SetReachable(false)
		w.pass(2 * time.Minute)
		fetched := w.machines[4].Count("fetch") + w.machines[4].Count("bake")
		tell := func(p *center.Preview) (out string) {
			for _, c := range p.Candidates {
				out += c.NodeID + ": " + c.Why + "; "
			}
			return out
		}
		p := w.preview(center.CreateRequest{Template: "base"})
		want := "n1: chosen; n2: the node is being drained; n3: it was frozen by sim, format 1; installed: format 2; n4: the node is UNREACHABLE; "
		if got := tell(p); got != want || p.NodeID != "n1" {
			t.Errorf("on %s: %s", p.NodeID, got)
		}
		if c := p.Candidates; !c[0].Fits || c[1].Fits || c[2].Compat != spore.CompatStale || c[0].Compat != spore.CompatOK || c[0].Address != "10.0.0.1" {
			t.Errorf("%+v", c)
		}
		p = w.preview(center.CreateRequest{Template: "base", Nodes: []string{"n2"}})
		if got := tell(p); !strings.HasPrefix(got, "n1: not among the nodes asked for; n2: the node is being drained; ") {
			t.Error(got)
		}
		w.machines[0].FillTo(97)
		w.pass(30 * time.Second)
		p = w.preview(center.CreateRequest{Template: "base"})
		if got := tell(p); p.Err == nil || !strings.HasPrefix(got, "n1: its disk is full; ") {
			t.Errorf("%v: %s", p.Err, got)
		}
		w.refuses(center.CreateRequest{Template: "base"}, spore.CodeStale, spore.ReasonStaleNeedsRedo, "n3") // the only cure that is to be had
		if now := w.machines[4].Count("fetch") + w.machines[4].Count("bake"); now != fetched {
			t.Errorf("asking has brought it to n5")
		}
	})
}
