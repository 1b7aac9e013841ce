package daemon_test

import (
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/center"
)

// TestDerivedOutliveTheirParents deletes the beginning of a line: what came of it goes on, and its bytes go with the last of it.
func TestDerivedOutliveTheirParents(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		base := f.build("base", api.ReplicaPolicy{})
		s := f.create("base")
		machine := f.cluster.Machine("n1")
		f.ok(machine.Write(s.ID, 1, "/root/file", "one"))
		one := f.snapshot(s.ID, "one")
		f.ok(machine.Write(s.ID, 1, "/root/file", "two"))
		f.snapshot(s.ID, "two")
		f.ok(f.DeleteSandbox(ctx, s.ID))

		for _, ref := range []string{"base", "one"} {
			plan, err := f.DeleteTemplate(ctx, ref, client.DeleteOptions{DryRun: true})
			f.ok(err)
			if len(plan.HeldBy) == 0 || plan.RetainBytes == 0 {
				t.Errorf("%s is held by %+v", ref, plan)
			}
			d, err := f.DeleteTemplate(ctx, ref, client.DeleteOptions{})
			f.ok(err)
			if d.Replicas != 1 || d.JobID == "" {
				t.Errorf("the deletion is %+v", d)
			}
		}
		_, err := f.CollectGarbage(ctx, false)
		f.ok(err)
		two := f.template("two")
		if two.Status != spore.TemplateReady || two.ParentID != one.ID {
			t.Errorf("what came of it is %+v", two)
		}
		again := f.create("two")
		if audit := f.frozen(two.ID)["n1"]; audit.Files["/root/file"] != "two" || audit.Err != nil {
			t.Errorf("it holds %+v", audit)
		}
		f.snapshot(again.ID, "three")
		l, err := f.Lineage(ctx, "three", client.LineageOptions{})
		f.ok(err)
		if len(l.Ancestors) != 3 || l.Ancestors[0].ID != two.ID || l.Ancestors[1].Status != spore.TemplateDeleted || l.Ancestors[2].ID != base.ID {
			t.Errorf("its history is %+v", l.Ancestors)
		}

		f.ok(f.DeleteSandbox(ctx, again.ID))
		for _, ref := range []string{"two", "three"} {
			_, err := f.DeleteTemplate(ctx, ref, client.DeleteOptions{})
			f.ok(err)
		}
		_, err = f.CollectGarbage(ctx, false)
		f.ok(err)
		if a := machine.Audit(); len(a.Pieces) > 0 || len(a.Frozen) > 0 {
			t.Errorf("with all of it deleted there are %+v, %+v", a.Frozen, a.Pieces)
		}
	})
}

// TestDeleteWhileANodeIsSilent deletes what a node has that does not answer: it is deleted at once, and the node told later.
func TestDeleteWhileANodeIsSilent(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		base := f.build("base", everywhere)
		f.lost("n2")
		d, err := f.DeleteTemplate(ctx, "base", client.DeleteOptions{})
		f.ok(err)
		if j := f.wait(d.JobID); j.Operation != spore.OpDelete || j.TemplateStatus != "" && j.TemplateStatus != spore.TemplateDeleted {
			t.Errorf("its job is %+v", j)
		}
		_, err = f.GetTemplate(ctx, "base")
		f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonTemplateNotFound, words: []string{"base"}})
		if len(f.frozen(base.ID)) != 1 {
			t.Errorf("it is on %v still", f.frozen(base.ID))
		}
		if list := f.must(f.ListReplicas(ctx, base.ID)); len(list) != 1 || list[0].Phase != spore.ReplicaCleaning || list[0].NodeID != "n2" {
			t.Errorf("its replicas are %+v", list)
		}
		f.build("base", api.ReplicaPolicy{Nodes: []string{"n1"}}) // the name is free
		f.cluster.Machine("n2").SetReachable(true)
		f.until("the node is told", func() bool { return len(f.frozen(base.ID)) == 0 })
	})
}

// TestRetentionAndQuota keeps no more than is to be kept, and makes no more than may be made.
func TestRetentionAndQuota(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		f.build("base", api.ReplicaPolicy{})
		s := f.create("base")
		names := []string{"a", "b", "c", "d"}
		for _, name := range names {
			f.snapshot(s.ID, name)
		}
		_, err := f.CreateSnapshot(ctx, s.ID, api.SnapshotRequest{Name: "e"})
		if err == nil || spore.AsError(err).Hint == "" || f.status.Load() < 400 {
			t.Errorf("one too many: %v", err)
		}
		retain := true
		_, err = f.UpdateTemplate(ctx, "a", api.TemplateUpdate{Retain: &retain})
		f.ok(err)
		plan, err := f.CollectGarbage(ctx, true)
		f.ok(err)
		if len(plan.Policies) != 1 || plan.Policies[0].Name != "b" || plan.Policies[0].Detail == "" {
			t.Errorf("the plan is %+v", plan.Policies)
		}
		f.template("b")
		_, err = f.CollectGarbage(ctx, false)
		f.ok(err)
		for _, name := range names {
			if _, err := f.GetTemplate(ctx, name); (err != nil) != (name == "b") {
				t.Errorf("%s: %v", name, err)
			}
		}
		f.leap(25 * time.Hour)
		for _, name := range names {
			if _, err := f.GetTemplate(ctx, name); (err != nil) != (name != "a") {
				t.Errorf("a day later, %s: %v", name, err)
			}
		}
	}, func(o *center.Options) {
		o.Retention = center.Retention{KeepLast: 2, MaxAge: 24 * time.Hour}
		o.Quota = center.Quota{SnapshotsPerSandbox: 4}
	})
}

// TestAliasesMove points a name at one template after the other.
func TestAliasesMove(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		first, second := f.build("first", api.ReplicaPolicy{}), f.build("second", api.ReplicaPolicy{})
		_, err := f.PutAlias(ctx, "app", api.AliasRequest{Template: "first", Author: "ada", Reason: "to begin"})
		f.ok(err)
		_, err = f.PutAlias(ctx, "app:stable", api.AliasRequest{Template: "first"})
		f.ok(err)
		if s := f.create("app"); s.TemplateID != first.ID {
			t.Errorf("it starts from %s", s.TemplateID)
		}

		// Whoever asks while it is switched gets the one or the other, and never nothing.
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := f.GetTemplate(ctx, "app")
				if err != nil || got.ID != first.ID && got.ID != second.ID {
					t.Errorf("in the middle it is %+v, %v", got, err)
					return
				}
			}
		}()
		for i := range 20 {
			_, err := f.PutAlias(ctx, "app", api.AliasRequest{Template: []string{"second", "first"}[i%2], Author: "bob"})
			f.ok(err)
		}
		close(stop)
		<-done
		_, err = f.PutAlias(ctx, "app:latest", api.AliasRequest{Template: "second", Author: "bob", Reason: "a release"})
		f.ok(err)
		if s := f.create("app"); s.TemplateID != second.ID {
			t.Errorf("after the switch it starts from %s", s.TemplateID)
		}
		if s := f.create("app:stable"); s.TemplateID != first.ID {
			t.Errorf("the other tag starts %s", s.TemplateID)
		}
		changes, err := f.AliasHistory(ctx, "app", false, 0)
		f.ok(err)
		if len(changes) != 22 || changes[0].TemplateID != second.ID || changes[0].Reason != "a release" || changes[21].Author != "ada" {
			t.Errorf("its history is %+v", changes)
		}
		f.ok(f.DeleteAlias(ctx, "app", "ada", "over"))
		_, err = f.GetTemplate(ctx, "app")
		f.refused(err, refusal{code: spore.CodeNotFound, status: 404, reason: spore.ReasonTemplateNotFound, words: []string{"app"}})
		if changes, err = f.AliasHistory(ctx, "app", true, 0); err != nil || len(changes) != 24 || changes[0].TemplateID != "" || changes[0].Reason != "over" {
			t.Errorf("its history is %+v, %v", changes, err)
		}
		_, err = f.DeleteTemplate(ctx, first.ID, client.DeleteOptions{Force: true})
		f.ok(err)
		_, err = f.GetAlias(ctx, "app:stable")
		f.refused(err, refusal{code: spore.CodeNotFound, status: 404, words: []string{"app:stable"}})
	})
}
