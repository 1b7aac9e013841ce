package nodetest

import (
	"context"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
)

func testSpace(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Full", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.Fill != nil, "Fill")
		tpl := b.baked()
		doomed := b.baked()
		s := b.started(tpl.ID)
		snap := spore.NewSnapshotID()
		b.Fill(t, true)
		if got := b.report().Node.Storage; got.Mode != spore.StorageDeleteOnly || got.UsagePct() < got.Limits.DeleteOnly {
			t.Errorf("a full disk is said to be %+v", got)
		}
		refused := func(what string, err error) {
			t.Helper()
			e := spore.AsError(err)
			if e == nil || e.Code != spore.CodeNoSpace || e.Hint == "" || !regexp.MustCompile(`\d+ \w+`).MatchString(e.Message) {
				t.Errorf("%s on a full disk: %+v", what, e)
			}
		}
		_, err := b.Node.Freeze(t.Context(), s, snap, tpl.ID)
		refused("a snapshot", err)
		_, err = b.Node.Suspend(t.Context(), s, snap, tpl.ID)
		refused("a pause", err)
		_, err = b.Node.Bake(t.Context(), tpl, tpl.ID+"-next", ignore)
		refused("a template", err)
		_, err = b.Node.Rebake(t.Context(), tpl, tpl.ID+"-next", ignore)
		refused("a redo", err)
		refused("a start", b.Node.Start(t.Context(), b.sandbox(), tpl.ID))
		other := b.Image
		other.EgressCA = certificate(t)
		_, err = b.Node.BuildArtifact(t.Context(), other, quiet)
		refused("a build", err)
		b.ids(tpl.ID, doomed.ID)
		b.answers(s)
		b.machines(running(s, tpl.ID))
		b.idle()

		_, err = b.Node.Bake(t.Context(), tpl, tpl.ID, ignore) // makes nothing
		b.must(err)
		b.must(b.Node.Forget(t.Context(), doomed.ID))
		b.collect()
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.must(b.Node.Forget(t.Context(), tpl.ID))
		b.must(b.Node.DropArtifact(t.Context(), tpl.ArtifactID))
		b.collect()

		b.Fill(t, false)
		b.built = nil
		again := b.baked()
		s = b.started(again.ID)
		_, err = b.Node.Freeze(t.Context(), s, snap, again.ID)
		b.must(err)
		b.idle()
	})
}

func testUpkeep(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Check", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		for _, full := range []bool{false, true} {
			r, err := b.Node.Check(t.Context(), full, func(string, int64, int64) {})
			b.must(err)
			if len(r.Problems) > 0 || r.Full != full || r.Objects == 0 || full && r.Bytes == 0 {
				t.Errorf("a check of what is whole (full %t): %+v", full, r)
			}
		}
		b.ids(tpl.ID)
	})

	t.Run("Collect", func(t *testing.T) {
		b := fresh(t)
		kept, gone := b.baked(), b.baked()
		if items := b.garbage(); len(items) > 0 {
			t.Fatalf("garbage from the start: %v", items)
		}
		b.must(b.Node.Forget(t.Context(), gone.ID))
		planned := b.garbage()
		if again := b.garbage(); len(planned) == 0 || !cmp.Equal(planned, again) {
			t.Fatalf("planned %v, and then %v", planned, again)
		}
		for _, item := range planned {
			if item.ID == "" || item.Kind == "" || item.Reason == "" || item.Bytes < 0 {
				t.Errorf("garbage that does not say what it is: %+v", item)
			}
		}
		done, err := b.Node.Collect(t.Context(), false)
		b.must(err)
		done = slices.DeleteFunc(done, func(i spore.GarbageItem) bool { return i.Kind == "layer" })
		if !cmp.Equal(planned, done) {
			t.Errorf("planned %v, and freed %v", planned, done)
		}
		if left := b.garbage(); len(left) > 0 {
			t.Errorf("left %v", left)
		}
		b.must(b.Node.VerifyFrozen(t.Context(), kept.ID, true))
		b.must(b.Node.VerifyArtifact(t.Context(), kept.ArtifactID, true))
		b.answers(b.started(kept.ID))
	})

	t.Run("Usage", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		u, err := b.Node.Usage(t.Context(), tpl.ID)
		b.must(err)
		if u.ExclusiveBytes <= 0 || u.SharedBytes != 0 || u.ReclaimableBytes <= 0 || len(u.HeldBy) > 0 ||
			!slices.Contains(u.StandsOn, tpl.ArtifactID) || !slices.Contains(u.StandsOn, tpl.KernelID) {
			t.Errorf("a template alone: %+v", u)
		}
		s := b.started(tpl.ID)
		u, err = b.Node.Usage(t.Context(), tpl.ID)
		b.must(err)
		if u.ReclaimableBytes != 0 || !slices.Equal(u.HeldBy, []string{s.ID}) {
			t.Errorf("a template that a sandbox stands on: %+v", u)
		}
		snap := spore.NewSnapshotID()
		_, err = b.Node.Freeze(t.Context(), s, snap, tpl.ID)
		b.must(err)
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		u, err = b.Node.Usage(t.Context(), tpl.ID)
		b.must(err)
		if u.SharedBytes <= 0 || !slices.Equal(u.HeldBy, []string{snap}) {
			t.Errorf("a template that a snapshot stands on: %+v", u)
		}
		mine, err := b.Node.Usage(t.Context(), snap)
		b.must(err)
		if mine.SharedBytes != u.SharedBytes || mine.ExclusiveBytes <= 0 || mine.ReclaimableBytes <= 0 || !slices.Equal(mine.HeldBy, []string{tpl.ID}) {
			t.Errorf("the snapshot: %+v", mine)
		}
		b.must(b.Node.Forget(t.Context(), tpl.ID))
		mine, err = b.Node.Usage(t.Context(), snap)
		b.must(err)
		if mine.SharedBytes != 0 || len(mine.HeldBy) > 0 {
			t.Errorf("the snapshot alone: %+v", mine)
		}
	})
}

func testCancel(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Before", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.started(tpl.ID)
		ctx := b.cancelled()
		_, err := b.Node.Bake(ctx, tpl, tpl.ID+"-next", ignore)
		b.want(err, spore.CodeCanceled)
		_, err = b.Node.Rebake(ctx, tpl, tpl.ID+"-next", ignore)
		b.want(err, spore.CodeCanceled)
		b.want(b.Node.Probe(ctx, tpl, tpl.ID), spore.CodeCanceled)
		b.want(b.Node.Start(ctx, b.sandbox(), tpl.ID), spore.CodeCanceled)
		_, err = b.Node.Freeze(ctx, s, spore.NewSnapshotID(), tpl.ID)
		b.want(err, spore.CodeCanceled)
		_, err = b.Node.Suspend(ctx, s, spore.NewSnapshotID(), tpl.ID)
		b.want(err, spore.CodeCanceled)
		b.untouched(tpl, s)
	})

	t.Run("Build", func(t *testing.T) {
		b := fresh(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := b.Node.BuildArtifact(ctx, b.Image, func(spore.JobPhase, spore.PullProgress) { cancel() })
		b.want(err, spore.CodeCanceled)
		said, err := b.Node.ResolveArtifact(t.Context(), b.Image)
		b.must(err)
		b.want(b.Node.VerifyArtifact(t.Context(), said.ID, false), spore.CodeNotFound)
		b.idle()
		b.artifact()
	})

	t.Run("Bake", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		s := b.started(tpl.ID)
		for _, bake := range []func(context.Context, *spore.Template, string, func(string)) (*spore.Frozen, error){b.Node.Bake, b.Node.Rebake} {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := bake(ctx, tpl, tpl.ID+"-next", func(string) { cancel() })
			b.want(err, spore.CodeCanceled)
			b.untouched(tpl, s)
		}
		_, err := b.Node.Bake(t.Context(), tpl, tpl.ID+"-next", ignore) // nothing is in the way
		b.must(err)
	})

	t.Run("Midway", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.Midway != nil, "Midway")
		tpl := b.baked()
		s := b.started(tpl.ID)
		for name, do := range map[string]func(context.Context) error{
			"start": func(ctx context.Context) error { return b.Node.Start(ctx, at(s, 2), tpl.ID) },
			"probe": func(ctx context.Context) error { return b.Node.Probe(ctx, tpl, tpl.ID) },
			"freeze": func(ctx context.Context) error {
				_, err := b.Node.Freeze(ctx, s, spore.NewSnapshotID(), tpl.ID)
				return err
			},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			b.Midway(name, cancel)
			if err := do(ctx); err == nil || ctx.Err() == nil {
				t.Errorf("%s, cancelled midway: %v", name, err)
			}
			cancel()
			b.untouched(tpl, s)
		}
	})
}

// untouched wants that there is one template and one sandbox that runs, and nothing else.
func (b *bed) untouched(tpl *spore.Template, s *spore.Sandbox) {
	b.Helper()
	b.ids(tpl.ID)
	b.machines(running(s, tpl.ID))
	b.idle()
	b.answers(s)
	if items := b.garbage(); len(items) > 0 {
		b.Fatalf("garbage is left: %v", items)
	}
	b.must(b.Node.VerifyFrozen(b.Context(), tpl.ID, true))
}

func testUnknown(t *testing.T, fresh func(*testing.T) *bed) {
	b := fresh(t)
	ctx := t.Context()
	const none = "tpl-000000000000000000000000"
	tpl := b.template()
	tpl.ID = none
	for name, do := range map[string]func() error{
		"VerifyArtifact": func() error { return b.Node.VerifyArtifact(ctx, "rfs-000000000000000000000000", false) },
		"OpenArtifact":   func() error { _, err := b.Node.OpenArtifact(ctx, "rfs-000000000000000000000000"); return err },
		"Rebake":         func() error { _, err := b.Node.Rebake(ctx, tpl, none+"-next", ignore); return err },
		"Probe":          func() error { return b.Node.Probe(ctx, tpl, none) },
		"Promote":        func() error { _, err := b.Node.Promote(ctx, none+"-next", none); return err },
		"VerifyFrozen":   func() error { return b.Node.VerifyFrozen(ctx, none, true) },
		"Diff":           func() error { _, err := b.Node.Diff(ctx, none, none, 10); return err },
		"ResolveKernel":  func() error { _, err := b.Node.ResolveKernel(ctx, "krn-ffffffffffffffffffffffff"); return err },
		"Start":          func() error { return b.Node.Start(ctx, b.sandbox(), none) },
		"Flatten":        func() error { _, err := b.Node.Flatten(ctx, none, true); return err },
		"Frozen":         func() error { _, err := b.Node.Frozen(ctx, none); return err },
		"Forget":         func() error { return b.Node.Forget(ctx, none) },
		"Usage":          func() error { _, err := b.Node.Usage(ctx, none); return err },
	} {
		t.Run(name, func(t *testing.T) {
			if err := do(); spore.CodeOf(err) != spore.CodeNotFound {
				t.Errorf("of an unknown id: %q (%v), want %q", spore.CodeOf(err), err, spore.CodeNotFound)
			}
		})
	}
	b.ids()
	b.machines()
	b.idle()
}

func testFetch(t *testing.T, fresh func(*testing.T) *bed) {
	b := fresh(t)
	if b.Peer == nil {
		tpl := b.template()
		_, err := b.Node.Fetch(t.Context(), tpl, tpl.ID, []string{"elsewhere"}, ignore)
		b.want(err, spore.CodeUnsupported)
		return
	}
	here, there := b, &bed{T: t, Machine: b.Machine}
	there.Node = b.Peer
	_, err := there.Node.Recover(t.Context(), nil)
	b.must(err)
	tpl := there.baked()
	s := there.started(tpl.ID)
	snap := spore.NewSnapshotID()
	_, err = there.Node.Freeze(t.Context(), s, snap, tpl.ID)
	b.must(err)
	here.artifact()

	from := []string{"nowhere", b.Peer.ID()}
	for range 2 { // the second time it is there already
		f, err := here.Node.Fetch(t.Context(), tpl, tpl.ID, from, ignore)
		b.must(err)
		if f.ID != tpl.ID {
			t.Errorf("fetched %+v", f)
		}
	}
	_, err = here.Node.Fetch(t.Context(), &spore.Template{ID: snap}, snap+"-next", from, ignore)
	b.must(err)
	here.ids(tpl.ID, snap+"-next")
	for _, id := range []string{tpl.ID, snap + "-next"} {
		b.must(here.Node.VerifyFrozen(t.Context(), id, true))
		here.answers(here.started(id))
	}
	u, err := here.Node.Usage(t.Context(), tpl.ID)
	b.must(err)
	if u.SharedBytes == 0 {
		t.Error("what a template and its snapshot share was kept twice")
	}
	_, err = here.Node.Fetch(t.Context(), &spore.Template{ID: tpl.ID + "-none"}, tpl.ID+"-none", from, ignore)
	b.want(err, spore.CodeNotFound)
	ctx := b.cancelled()
	_, err = here.Node.Fetch(ctx, tpl, tpl.ID+"-third", from, ignore)
	b.want(err, spore.CodeCanceled)
	here.ids(tpl.ID, snap+"-next")
	here.idle()
}
