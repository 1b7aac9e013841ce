package center_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/node/simnode"
	"github.com/sporevm/spore/internal/store"
)

func TestDetails(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{})
		_, err := w.PutAlias(ctx, "prod", "", center.AliasRequest{Template: "base"})
		w.ok(err)
		first := w.sandbox("prod")
		w.pass(time.Second)
		last := w.sandbox("base")
		gone := w.sandbox("base")
		w.ok(w.KillSandbox(ctx, gone.ID))
		d, err := w.TemplateDetails(ctx, "prod")
		w.ok(err)
		slices.Sort(d.HeldBy)
		holders := []string{first.ID, last.ID}
		slices.Sort(holders)
		if d.Template.ID != base.ID || len(d.Replicas) != 1 || len(d.Aliases) != 1 || d.Aliases[0].Label() != "prod" ||
			d.Artifact == nil || d.Artifact.ID != base.ArtifactID || d.Job == nil || d.Job.ID != base.JobID || d.RefCount != 2 || !slices.Equal(d.HeldBy, holders) {
			t.Errorf("%+v", d)
		}
		refs, total, err := w.Refs(ctx, center.RefQuery{Template: "base", Limit: 1})
		if err != nil || total != 2 || len(refs) != 1 || refs[0].SandboxID != last.ID {
			t.Errorf("%v of %d, %v", refs, total, err)
		}
		if refs, total, err = w.Refs(ctx, center.RefQuery{Template: "base", All: true}); err != nil || total != 3 || refs[0].Status != spore.RefReleased {
			t.Errorf("%v of %d, %v", refs, total, err)
		}
		if refs, total, err = w.Refs(ctx, center.RefQuery{Sandbox: first.ID}); err != nil || total != 1 || refs[0].TemplateID != base.ID {
			t.Errorf("%v of %d, %v", refs, total, err)
		}
		job, err := w.JobDetails(ctx, base.JobID)
		if err != nil || job.TemplateStatus != spore.TemplateReady || job.ArtifactStatus != spore.ArtifactReady {
			t.Errorf("%+v, %v", job, err)
		}

		for what, err := range map[string]error{
			"details":  second(w.TemplateDetails(ctx, "nothing")),
			"replicas": second(w.Replicas(ctx, "nothing")),
			"nodes":    second(w.ReadyNodes(ctx, "tpl-nothing")),
			"refs":     func() error { _, _, err := w.Refs(ctx, center.RefQuery{Template: "nothing"}); return err }(),
		} {
			if spore.CodeOf(err) != spore.CodeNotFound || spore.AsError(err).Reason != spore.ReasonTemplateNotFound {
				t.Errorf("%s of nothing: %v", what, err)
			}
		}
		w.wants(second(w.JobDetails(ctx, "job-nothing")), spore.CodeNotFound, spore.ReasonOperationNotFound)
		w.wants(func() error { _, _, err := w.Refs(ctx, center.RefQuery{Sandbox: "s0"}); return err }(), spore.CodeNotFound)

		w.remove("base")
		w.wants(second(w.TemplateDetails(ctx, base.ID)), spore.CodeNotFound)
		if job, err = w.JobDetails(ctx, base.JobID); err != nil || job.TemplateStatus != spore.TemplateDeleted {
			t.Errorf("a job of what is gone: %+v, %v", job, err)
		}
		if refs, total, err = w.Refs(ctx, center.RefQuery{Template: base.ID}); err != nil || total != 2 || len(refs) != 2 {
			t.Errorf("who holds what is gone: %v of %d, %v", refs, total, err)
		}
		if list, err := w.Replicas(ctx, base.ID); err != nil || len(list) != 0 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestReadyNodes(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{Min: 2})
		scope := func() (ready, stale string) {
			s, err := w.ReadyNodes(ctx, "base")
			w.ok(err)
			return strings.Join(s.Ready, " "), strings.Join(s.Stale, " ")
		}
		if ready, stale := scope(); ready != "n1 n2" || stale != "" {
			t.Errorf("%q, %q", ready, stale)
		}
		_, err := w.UpdateTemplate(ctx, "base", center.TemplateUpdate{Replicas: &spore.ReplicaPolicy{}})
		w.ok(err) // so that a drained node's replica is not made elsewhere
		_, err = w.DrainNode(ctx, "n2", true)
		w.ok(err)
		if ready, stale := scope(); ready != "n1" || stale != "" {
			t.Errorf("%q, %q", ready, stale)
		}
		_, err = w.DrainNode(ctx, "n2", false)
		w.ok(err)
		upgrade(w.machines[0])
		w.pass(30 * time.Second)
		if ready, stale := scope(); ready != "n2" || stale != "n1" {
			t.Errorf("%q, %q", ready, stale)
		}
		upgrade(w.machines[1])
		w.pass(30 * time.Second)
		_, err = w.ReadyNodes(ctx, "base")
		w.wants(err, spore.CodeStale, spore.ReasonStaleNeedsRedo)
		for _, n := range w.machines {
			n.SetReachable(false)
		}
		w.pass(2 * time.Minute)
		_, err = w.ReadyNodes(ctx, "base")
		if r := spore.AsError(err).Reason; r != spore.ReasonStaleNeedsRedo && r != spore.ReasonNoReadyReplica {
			t.Errorf("%v, %s", err, r)
		}
	})
}

// upgrade gives a machine another engine, whose state is not that of the one before.
func upgrade(m *simnode.Machine) {
	c := m.Components()
	c.StateFormat = "sim-2"
	m.SetComponents(c)
}

func TestUpdateTemplate(t *testing.T) {
	inWorld(t, 3, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{})
		title, yes, rule := "The Base", true, spore.CompatPolicy("guest_only")
		u, err := w.UpdateTemplate(ctx, "base", center.TemplateUpdate{
			DisplayName: &title, Labels: map[string]string{"a": "b"}, Retain: &yes, Policy: &rule, Replicas: &spore.ReplicaPolicy{Min: 2, Max: 2},
		})
		w.ok(err)
		if u.DisplayName != title || u.Labels["a"] != "b" || !u.Retain || u.Policy != spore.PolicyGuestOnly || u.Status != spore.TemplatePartiallyReady || !u.UpdatedAt.After(base.UpdatedAt) {
			t.Errorf("%+v", u)
		}
		w.pass(time.Minute)
		if u, err = w.Template(ctx, "base"); err != nil || u.Status != spore.TemplateReady || u.DisplayName != title {
			t.Errorf("%+v, %v", u, err)
		}
		list, err := w.Replicas(ctx, "base")
		if err != nil || len(list) != 2 || list[0].CompatPolicy != spore.PolicyGuestOnly || list[1].CompatPolicy != spore.PolicyGuestOnly {
			t.Errorf("%v, %v", list, err)
		}
		if u, err = w.UpdateTemplate(ctx, "base", center.TemplateUpdate{Labels: map[string]string{}}); err != nil || len(u.Labels) != 0 || u.DisplayName != title {
			t.Errorf("%+v, %v", u, err)
		}
		long, line, odd := strings.Repeat("x", 300), "a\nb", spore.CompatPolicy("odd")
		for field, req := range map[string]center.TemplateUpdate{
			"displayName":  {DisplayName: &long},
			"displayName ": {DisplayName: &line},
			"labels":       {Labels: map[string]string{"": ""}},
			"compatPolicy": {Policy: &odd},
			"replicas.min": {Replicas: &spore.ReplicaPolicy{Min: -1}},
			"replicas.max": {Replicas: &spore.ReplicaPolicy{Min: 2, Max: 1}},
		} {
			_, err := w.UpdateTemplate(ctx, "base", req)
			if spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != strings.TrimSpace(field) {
				t.Errorf("%s: %v", field, err)
			}
		}
		for what, p := range map[string]spore.ReplicaPolicy{
			"unknown node": {Nodes: []string{"n9"}},
			"no node":      {Selector: map[string]string{"id": "n9"}},
		} {
			_, err := w.UpdateTemplate(ctx, "base", center.TemplateUpdate{Replicas: &p})
			if spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Reason != spore.ReasonNoNodes {
				t.Errorf("%s: %v", what, err)
			}
		}
		w.wants(second(w.UpdateTemplate(ctx, "nothing", center.TemplateUpdate{})), spore.CodeNotFound)
	})
}

func TestCompat(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{Min: 2})
		w.template("single", spore.ReplicaPolicy{Nodes: []string{"n1"}})
		snap := w.snapshot(w.sandbox("base", "n2").ID)
		matrix := func(q center.CompatQuery) *spore.CompatMatrix {
			t.Helper()
			m, err := w.CompatMatrix(ctx, q)
			w.ok(err)
			return m
		}
		m := matrix(center.CompatQuery{})
		if len(m.Templates) != 3 || m.Summary != (spore.CompatSummary{}) || m.Templates[0].TemplateID != snap.ID || len(m.Templates[0].Nodes) != 1 {
			t.Errorf("%+v", m)
		}
		upgrade(w.machines[1])
		w.pass(30 * time.Second) // its next report has it scanned
		if got := w.replicas("base"); got != "n1 READY OK; n2 READY STALE; " {
			t.Error(got)
		}
		stale := spore.CompatSummary{StaleTemplates: 2, StaleReplicas: 2, AffectedNodes: 1}
		seen := map[string]spore.CompatStatus{}
		for q := (center.CompatQuery{Limit: 1}); ; {
			m := matrix(q)
			if m.Summary != stale || len(m.Templates) != 1 {
				t.Errorf("page %q: %+v", q.PageToken, m)
			}
			for _, row := range m.Templates {
				seen[row.TemplateID] = row.Overall
			}
			if q.PageToken = m.Next; m.Next == "" {
				break
			}
		}
		if len(seen) != 3 || seen[base.ID] != spore.CompatStale || seen[snap.ID] != spore.CompatStale {
			t.Errorf("%v", seen)
		}
		m = matrix(center.CompatQuery{Template: "single"})
		if len(m.Templates) != 1 || m.Summary != (spore.CompatSummary{}) || m.Templates[0].Overall != spore.CompatOK || m.Templates[0].Nodes[0].Bound.StateFormat != "sim-1" {
			t.Errorf("%+v", m)
		}
		scan, err := w.ScanCompat(ctx, nil)
		if err != nil || !slices.Equal(scan.Nodes, []string{"n1", "n2"}) || scan.Replicas != 4 || scan.Changed != 0 || scan.Stale != 2 {
			t.Errorf("%+v, %v", scan, err)
		}
		if scan, err = w.ScanCompat(ctx, []string{"n1", "n1"}); err != nil || len(scan.Nodes) != 1 || scan.Replicas != 2 || scan.Stale != 0 {
			t.Errorf("%+v, %v", scan, err)
		}
		w.wants(second(w.ScanCompat(ctx, []string{"n1", "n9"})), spore.CodeInvalid, spore.ReasonNoNodes)
		w.wants(second(w.CompatMatrix(ctx, center.CompatQuery{Template: "nothing"})), spore.CodeNotFound)
		w.wants(second(w.CompatMatrix(ctx, center.CompatQuery{PageToken: "odd"})), spore.CodeInvalid)

		// Rows of before components were written down.
		w.rows(func(tx store.Tx) error {
			for _, id := range []string{"n1", "n2"} {
				r, err := tx.Replica(base.ID, id)
				if err != nil {
					return err
				}
				r.Bound, r.CompatStatus = spore.Components{}, ""
				if err := tx.PutReplica(r); err != nil {
					return err
				}
			}
			return nil
		})
		if scan, err = w.ScanCompat(ctx, nil); err != nil || scan.Changed != 2 || scan.Stale != 1 {
			t.Errorf("%+v, %v", scan, err)
		}
		if m := matrix(center.CompatQuery{}); m.Summary.UnknownReplicas != 2 {
			t.Errorf("%+v", m.Summary)
		}
		w.wants(second(w.AdoptBaseline(ctx, center.AdoptRequest{Template: "nothing"})), spore.CodeNotFound)
		w.wants(second(w.AdoptBaseline(ctx, center.AdoptRequest{Nodes: []string{"n9"}})), spore.CodeInvalid, spore.ReasonNoNodes)
		for _, c := range []struct {
			req  center.AdoptRequest
			want int
		}{
			{center.AdoptRequest{Template: "single"}, 0},
			{center.AdoptRequest{Template: "base", Nodes: []string{"n2"}}, 1},
			{center.AdoptRequest{}, 1},
			{center.AdoptRequest{}, 0},
		} {
			if n, err := w.AdoptBaseline(ctx, c.req); err != nil || n != c.want {
				t.Errorf("%+v: %d, %v", c.req, n, err)
			}
		}
		if got := w.replicas("base"); got != "n1 READY OK; n2 READY OK; " {
			t.Error(got)
		}
		list, err := w.Replicas(ctx, "base")
		if err != nil || list[1].Bound != w.machines[1].Components() {
			t.Errorf("%+v, %v", list[1].Bound, err)
		}
	})
}
