package center_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func TestAliases(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		one, two := w.template("one", spore.ReplicaPolicy{}), w.template("two", spore.ReplicaPolicy{})
		put := func(name, tag, template, why string) error {
			_, err := w.PutAlias(ctx, name, tag, center.AliasRequest{Template: template, Author: "ada", Reason: why})
			return err
		}
		w.ok(put("prod", "", "one", "first"))
		w.ok(put("prod", "next", two.ID, "soon"))
		w.ok(put("prod", "", "two", "switch"))
		w.ok(put("prod", "latest", "prod:next", "switch")) // where it is already
		if got, err := w.Template(ctx, "prod"); err != nil || got.ID != two.ID {
			t.Errorf("prod is %v, %v", got, err)
		}
		if got, err := w.Alias(ctx, "prod", ""); err != nil || got.TemplateID != two.ID || got.Author != "ada" || got.Reason != "switch" || got.Tag != spore.DefaultTag {
			t.Errorf("%+v, %v", got, err)
		}
		s := w.sandbox("prod:next")
		if s.TemplateID != two.ID {
			t.Errorf("a sandbox from the alias stands on %s", s.TemplateID)
		}
		w.ok(w.DeleteAlias(ctx, "prod", "next", "bob", "done"))
		w.wants(w.DeleteAlias(ctx, "prod", "next", "", ""), spore.CodeNotFound)
		tell := func(tag string) (out string) {
			changes, err := w.AliasHistory(ctx, "prod", tag, 10)
			w.ok(err)
			for _, c := range changes {
				out += fmt.Sprintf("%s %s %s %s;", c.Tag, c.TemplateID, c.Author, c.Reason)
			}
			return strings.NewReplacer(one.ID, "one", two.ID, "two").Replace(out)
		}
		if got := tell(""); got != "next  bob done;latest two ada switch;next two ada soon;latest one ada first;" {
			t.Error(got)
		}
		if got := tell("next"); got != "next  bob done;next two ada soon;" {
			t.Error(got)
		}
		if _, err := w.AliasHistory(ctx, "never", "", 10); err == nil {
			t.Error("there is a history of nothing")
		} else {
			w.wants(err, spore.CodeNotFound)
		}
		w.ok(put("prod", "old", "one", ""))
		list, next, err := w.Aliases(ctx, center.AliasQuery{Template: "one", Limit: 10})
		if err != nil || next != "" || len(list) != 1 || list[0].Label() != "prod:old" {
			t.Errorf("%v, %q, %v", list, next, err)
		}
		w.remove("one") // and its alias with it
		if _, err := w.Alias(ctx, "prod", "old"); err == nil {
			t.Error("the alias of a deleted template is there still")
		}

		big := strings.Repeat("x", 2000)
		for name, c := range map[string]struct {
			err   error
			code  spore.Code
			field string
		}{
			"the name of a template":  {put("two", "v1", "prod", ""), spore.CodeConflict, ""},
			"no name":                 {put("", "", "two", ""), spore.CodeInvalid, "alias"},
			"a tag in the name":       {put("a:b", "c", "two", ""), spore.CodeInvalid, "alias"},
			"a name like an id":       {put("tpl-1", "", "two", ""), spore.CodeInvalid, "alias"},
			"a bad tag":               {put("prod", "-x", "two", ""), spore.CodeInvalid, "alias"},
			"no template":             {put("prod", "", "", ""), spore.CodeInvalid, "template"},
			"an unknown template":     {put("prod", "", "three", ""), spore.CodeNotFound, ""},
			"a deleted template":      {put("prod", "", one.ID, ""), spore.CodeNotFound, ""},
			"a reason of two kB":      {put("prod", "", "two", big), spore.CodeInvalid, "reason"},
			"a reason that's no text": {put("prod", "", "two", "\xff"), spore.CodeInvalid, "reason"},
			"an author of two kB":     {w.DeleteAlias(ctx, "prod", "", big, ""), spore.CodeInvalid, "author"},
		} {
			if spore.CodeOf(c.err) != c.code || c.field != "" && spore.AsError(c.err).Field != c.field {
				t.Errorf("%s: %v", name, c.err)
			}
		}
		if got, err := w.Template(ctx, "prod"); err != nil || got.ID != two.ID {
			t.Errorf("prod is %v, %v", got, err)
		}

		forks, err := w.Fork(ctx, center.Idempotency{}, s.ID, center.ForkRequest{Count: 1})
		w.ok(err)
		w.wants(put("prod", "", forks[0].Sandbox.TemplateID, ""), spore.CodeConflict)
		w.cluster.RemoveImage("registry.example/app:1")
		broken := w.template("broken", spore.ReplicaPolicy{})
		w.wants(put("prod", "", broken.ID, ""), spore.CodeConflict)
	})
}

func TestLineage(t *testing.T) {
	inWorld(t, 1, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		base := w.template("base", spore.ReplicaPolicy{})
		s := w.sandbox("base")
		first := w.snapshot(s.ID, func(r *center.SnapshotRequest) { r.Name, r.Author, r.Reason = "first", "bob", "before lunch" })
		second := w.snapshot(s.ID)
		child := w.snapshot(w.sandbox(first.ID).ID)
		_, err := w.PutAlias(ctx, "good", "v1", center.AliasRequest{Template: second.ID})
		w.ok(err)
		w.remove(first.ID)
		names := strings.NewReplacer(base.ID, "base", first.ID, "first", second.ID, "second", child.ID, "child")
		tell := func(ref string, q center.LineageQuery) string {
			t.Helper()
			l, err := w.Lineage(ctx, ref, q)
			if err != nil {
				return string(spore.CodeOf(err))
			}
			list := func(entries []spore.LineageEntry) (out []string) {
				for _, e := range entries {
					out = append(out, e.ID)
				}
				return out
			}
			return names.Replace(fmt.Sprintf("%s%v%v%v", l.Self.ID, list(l.Ancestors), list(l.Descendants), l.Omitted))
		}
		for _, c := range []struct {
			ref  string
			q    center.LineageQuery
			want string
		}{
			{"base", center.LineageQuery{}, "base[][first child second]false"},
			{second.ID, center.LineageQuery{}, "second[first base][]false"},
			{second.ID, center.LineageQuery{Ancestors: true}, "second[first base][]false"},
			{"good:v1", center.LineageQuery{Ancestors: true, Limit: 1}, "second[first][]true"},
			{second.ID, center.LineageQuery{Ancestors: true, Limit: 2}, "second[first base][]false"},
			{first.ID, center.LineageQuery{Descendants: true}, "first[][child second]false"},
			{first.ID, center.LineageQuery{Descendants: true, Limit: 2}, "first[][child second]false"},
			{first.ID, center.LineageQuery{Descendants: true, Limit: 1}, "first[][child]true"},
			{"first", center.LineageQuery{}, "not_found"}, // a deleted one is known by its id only
			{"nothing", center.LineageQuery{}, "not_found"},
		} {
			if got := tell(c.ref, c.q); got != c.want {
				t.Errorf("%s %+v: %s", c.ref, c.q, got)
			}
		}
		l, err := w.Lineage(ctx, second.ID, center.LineageQuery{})
		w.ok(err)
		e := l.Ancestors[0]
		if e.Status != spore.TemplateDeleted || e.Name != "first" || e.Author != "bob" || e.Reason != "before lunch" || e.OriginSandbox != s.ID || e.Kind != spore.KindSnapshot {
			t.Errorf("%+v", e)
		}
		if !slices.Equal(l.Self.Aliases, []string{"good:v1"}) {
			t.Errorf("%q", l.Self.Aliases)
		}
	})
}

func TestDiff(t *testing.T) {
	inWorld(t, 2, center.Options{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.template("base", spore.ReplicaPolicy{Min: 2})
		here, there := w.sandbox("base", "n1"), w.sandbox("base", "n2")
		w.ok(w.machines[0].Write(here.ID, here.Generation, "/new", "text"))
		a, b := w.snapshot(here.ID), w.snapshot(there.ID)
		d, err := w.Diff(ctx, "base", a.ID, 10)
		w.ok(err)
		if len(d.Files) != 1 || d.Files[0].Path != "/new" || d.Files[0].Kind != spore.ChangeAdded || d.To != a.ID {
			t.Errorf("%+v", d)
		}
		_, err = w.Diff(ctx, a.ID, b.ID, 10)
		w.wants(err, spore.CodeUnreachable, spore.ReasonNoReadyReplica)
		_, err = w.Diff(ctx, a.ID, "nothing", 10)
		w.wants(err, spore.CodeNotFound)
		w.machines[0].SetReachable(false)
		_, err = w.Diff(ctx, "base", a.ID, 10)
		w.wants(err, spore.CodeUnreachable, spore.ReasonNoReadyReplica)
		if !strings.Contains(err.Error(), a.ID) {
			t.Errorf("%v does not name it", err)
		}
		w.machines[0].SetReachable(true)
		w.ok(func() error { _, err := w.Diff(ctx, "base", a.ID, 10); return err }())
	})
}
