package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/store"
)

const (
	pageSize    = 100
	origins     = 1000 // sandboxes that the snapshots are of
	teams       = 100  // values of one of their labels
	failedEvery = 200  // one of so many is FAILED
)

// measurePages times pages of a list of many snapshots. The center does nothing else: it is not started.
func (w *controlWorld) measurePages(ctx context.Context) (_ *Row, err error) {
	if w.store, err = w.db.open(ctx, center.NewControllerID(), w.cfg.Logger); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.store.Close()) }()
	w.say("writing %d snapshots", w.cfg.Snapshots)
	some, err := w.writeSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	w.center = center.New(w.store, nil, center.Options{Logger: w.cfg.Logger, Alone: w.db.alone()})
	w.say("measuring pages")
	middle, err := w.middle(ctx)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "pages", What: fmt.Sprintf("a page of %d of %d snapshots, worst p99", pageSize, w.cfg.Snapshots),
		Goal: "below 10 ms", Limit: 10, Unit: milliseconds,
		Note: "the floor of each is the rows of a first page, asked for by their ids and read without being understood",
	}
	snapshots := func(q center.TemplateQuery) center.TemplateQuery {
		q.Kind, q.Limit = spore.KindSnapshot, pageSize
		return q
	}
	pages := []struct {
		name  string
		query center.TemplateQuery
	}{
		{"first page", center.TemplateQuery{}},
		{"a page in the middle", center.TemplateQuery{PageToken: middle}},
		{"status of nearly all", center.TemplateQuery{Status: spore.TemplateReady}},
		{"status of few", center.TemplateQuery{Status: spore.TemplateFailed}},
		{"status of none", center.TemplateQuery{Status: spore.TemplatePending}},
		{"origin sandbox", center.TemplateQuery{OriginSandbox: originOf(7)}},
		{"label of one", center.TemplateQuery{Labels: map[string]string{"n": "7"}}},
		{"label of 1 in 100", center.TemplateQuery{Labels: map[string]string{"team": "7"}}},
		{"label of all", center.TemplateQuery{Labels: map[string]string{"all": "yes"}}},
		{"label of all and of one", center.TemplateQuery{Labels: map[string]string{"all": "yes", "n": "7"}}},
		{"label of all, few of the status", center.TemplateQuery{Labels: map[string]string{"all": "yes"}, Status: spore.TemplateFailed}},
		{"own name", center.TemplateQuery{Name: nameOf(7)}},
		{"display name of all", center.TemplateQuery{Name: "nightly"}},
		{"name of none", center.TemplateQuery{Name: "nobody"}},
	}
	series := make([]*Series, len(pages))
	for i, p := range pages {
		series[i] = row.series(p.name, milliseconds)
	}
	bare := row.series("bare rows by id", milliseconds)
	f, err := w.db.bare(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	rounds, warm := 200, 2
	if w.cfg.Quick {
		rounds = 5
	}
	for n := range warm + rounds {
		for i, p := range pages {
			began := time.Now()
			_, _, err := w.center.Templates(ctx, snapshots(p.query))
			took := time.Since(began)
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case err != nil:
				series[i].failed(err)
			case n >= warm:
				series[i].took(took)
			}
		}
		began := time.Now()
		if err := f.read(ctx, some); err != nil {
			return nil, err
		}
		if n >= warm {
			bare.took(time.Since(began))
		}
	}
	row.judge(true, func() (worst float64) {
		for _, s := range series {
			worst = max(worst, s.P99)
		}
		return worst
	})
	for _, s := range series {
		s.against(bare)
	}
	return row, nil
}

func originOf(n int) string { return fmt.Sprintf("s%020x", n%origins) }
func nameOf(n int) string   { return fmt.Sprintf("release-%d", n) }

// writeSnapshots fills the list, and answers the ids of a page of it.
func (w *controlWorld) writeSnapshots(ctx context.Context) (some []string, err error) {
	const atOnce = 1000
	began := time.Now().Add(-time.Duration(w.cfg.Snapshots) * time.Second)
	for from := 0; from < w.cfg.Snapshots; from += atOnce {
		var batch []*spore.Template
		for n := from; n < min(from+atOnce, w.cfg.Snapshots); n++ {
			batch = append(batch, w.snapshot(n, began))
		}
		err := w.store.Update(ctx, func(tx store.Tx) error {
			for _, t := range batch {
				if err := tx.InsertTemplate(t); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("write snapshots: %w", err)
		}
		some = some[:0]
		for _, t := range batch[max(0, len(batch)-pageSize):] {
			some = append(some, t.ID)
		}
	}
	return some, w.db.settle(ctx)
}

// snapshot is the n-th snapshot, as if a running sandbox had been captured every second.
func (w *controlWorld) snapshot(n int, began time.Time) *spore.Template {
	at := began.Add(time.Duration(n) * time.Second)
	t := *w.few
	t.ID, t.Name, t.Kind, t.Status = spore.NewSnapshotID(), nameOf(n), spore.KindSnapshot, spore.TemplateReady
	t.DisplayName, t.Retain, t.Replicas = "nightly", false, spore.ReplicaPolicy{}
	t.ParentID, t.OriginSandbox, t.OriginNode = w.few.ID, originOf(n), "n00001"
	t.Labels = map[string]string{"all": "yes", "team": fmt.Sprint(n % teams), "n": fmt.Sprint(n)}
	t.MemoryBytes, t.DiskBytes, t.CreatedAt, t.UpdatedAt = 3<<20, 1<<20, at, at
	if n%failedEvery == 0 {
		t.Status, t.LastError = spore.TemplateFailed, "its bytes are lost"
	}
	return &t
}

// middle walks to the token of a page halfway through the list.
func (w *controlWorld) middle(ctx context.Context) (token string, err error) {
	const stride = 1000
	for range max(1, w.cfg.Snapshots/2/stride) {
		_, token, err = w.center.Templates(ctx, center.TemplateQuery{Kind: spore.KindSnapshot, Limit: min(stride, max(1, w.cfg.Snapshots/2)), PageToken: token})
		if err != nil {
			return "", err
		}
	}
	return token, nil
}
