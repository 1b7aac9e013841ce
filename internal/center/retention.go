package center

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Retention removes old snapshots by itself. What people have asked to retain, what an alias points at and what a sandbox
// stands on stays; so does all that is no snapshot. The zero value removes nothing.
type Retention struct {
	KeepLast int           // of each sandbox's snapshots, the newest so many; 0: all
	MaxAge   time.Duration // those that are older go; 0: none does
}

// Validate refuses what cannot be meant.
func (r Retention) Validate() error {
	switch {
	case r.KeepLast < 0:
		return spore.Invalidf("retention.keepLast", "%d is below zero", r.KeepLast).WithHint("0 keeps all")
	case r.MaxAge < 0:
		return spore.Invalidf("retention.maxAge", "%s is below zero", r.MaxAge).WithHint("0 is no limit")
	}
	return nil
}

// Quota bounds how much may be made; 0: unbounded. What forks make for themselves counts towards Bytes alone.
type Quota struct {
	SnapshotsPerSandbox int
	Templates           int   // that are no snapshots
	Bytes               int64 // that all templates and snapshots together keep
}

// Validate refuses what cannot be meant.
func (q Quota) Validate() error {
	if q.SnapshotsPerSandbox < 0 || q.Templates < 0 || q.Bytes < 0 {
		return spore.Invalidf("quota", "it is below zero").WithHint("0 is no limit")
	}
	return nil
}

// underQuota refuses a template, not inserted yet, that would be one too many.
func (c *Center) underQuota(tx store.Tx, t *spore.Template) error {
	q := c.opt.Quota
	f, limit, of, fix := store.TemplateFilter{Kind: t.Kind}, q.Templates, "templates", "spore template rm"
	if t.Kind == spore.KindSnapshot {
		f.OriginSandbox = t.OriginSandbox
		limit, of, fix = q.SnapshotsPerSandbox, "snapshots of sandbox "+t.OriginSandbox, "spore snapshot rm"
	}
	if limit > 0 && !t.Ephemeral {
		n, err := tx.CountTemplates(f, limit)
		if err != nil {
			return err
		}
		if n >= limit {
			return spore.Errorf(spore.CodeConflict, "there are %d %s, and the quota is %d", n, of, limit).
				WithHint("remove one first: %s", fix)
		}
	}
	if q.Bytes <= 0 {
		return nil
	}
	kept, err := c.keptBytes(tx)
	if err != nil {
		return err
	}
	if kept >= q.Bytes {
		return spore.Errorf(spore.CodeConflict, "templates and snapshots keep %d bytes, and the quota is %d", kept, q.Bytes).
			WithHint("remove some that are not needed: spore snapshot ls, spore snapshot rm")
	}
	return nil
}

// weighAgainAfter is how old the sum of all bytes may be that a quota is compared with.
const weighAgainAfter = time.Minute

// keptBytes answers how many bytes templates and snapshots keep. The sum may be a minute old; while one caller adds up anew,
// the others go by the old one.
func (c *Center) keptBytes(tx store.Tx) (int64, error) {
	m := &c.meters
	now := c.opt.Now()
	last := m.weighed.Load()
	if last != 0 && (now.Sub(time.Unix(0, last)) < weighAgainAfter || !m.weighing.CompareAndSwap(false, true)) {
		return m.kept.Load(), nil
	}
	defer m.weighing.Store(false)
	var sum int64
	f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}, Ephemeral: true}
	for {
		list, page, err := tx.Templates(f)
		if err != nil {
			return 0, err
		}
		for _, t := range list {
			sum += t.MemoryBytes + t.DiskBytes
		}
		if page.Next == "" {
			break
		}
		f.After = page.Next
	}
	m.kept.Store(sum)
	m.weighed.Store(now.UnixNano())
	return sum, nil
}

const (
	policyKeepLast = "keep-last"
	policyMaxAge   = "max-age"
)

// plannedRemovals lists the snapshots that the retention policy does not keep, newest first.
func (c *Center) plannedRemovals(ctx context.Context) (plan []PolicyRemoval, err error) {
	if c.opt.Retention == (Retention{}) {
		return nil, nil
	}
	err = c.store.View(ctx, func(tx store.Tx) error {
		plan = nil
		j := newJudge(c.opt.Retention, c.opt.Now())
		f := store.TemplateFilter{Paging: store.Paging{Limit: 1000}, Kind: spore.KindSnapshot}
		if c.opt.Retention.KeepLast == 0 {
			f.CreatedBefore = j.oldest
		}
		for {
			list, page, err := tx.Templates(f)
			if err != nil {
				return err
			}
			for _, t := range list {
				r := j.judge(t)
				if r == nil {
					continue
				}
				if wanted, err := c.wantedStill(tx, t); err != nil {
					return err
				} else if !wanted {
					plan = append(plan, *r)
				}
			}
			if page.Next == "" {
				return nil
			}
			f.After = page.Next
		}
	})
	return plan, err
}

// judge applies a policy to snapshots, which it must be given newest first.
type judge struct {
	policy Retention
	now    time.Time
	oldest time.Time      // that may stay
	newer  map[string]int // snapshots seen so far, by sandbox
}

func newJudge(policy Retention, now time.Time) *judge {
	j := &judge{policy: policy, now: now, newer: map[string]int{}}
	if policy.MaxAge > 0 {
		j.oldest = now.Add(-policy.MaxAge)
	}
	return j
}

// judge answers why the policy does not keep a snapshot, nil when it does. Those that hold something count, retained or
// not; a failed one holds nothing, so no other has to give way to it, and it goes by its age only.
func (j *judge) judge(t *spore.Template) *PolicyRemoval {
	whole := t.Status == spore.TemplateReady || t.Status == spore.TemplatePartiallyReady
	if t.Kind != spore.KindSnapshot || t.Ephemeral || !whole && t.Status != spore.TemplateFailed {
		return nil
	}
	newer := j.newer[t.OriginSandbox]
	if whole {
		j.newer[t.OriginSandbox]++
	}
	if t.Retain {
		return nil
	}
	r := &PolicyRemoval{TemplateID: t.ID, Name: t.Name, Kind: t.Kind}
	switch {
	case whole && j.policy.KeepLast > 0 && newer >= j.policy.KeepLast:
		r.Policy = policyKeepLast
		r.Detail = fmt.Sprintf("%d newer snapshots of %s are kept", j.policy.KeepLast, t.OriginSandbox)
	case t.CreatedAt.Before(j.oldest):
		r.Policy = policyMaxAge
		r.Detail = fmt.Sprintf("it is %s old, and %s is the limit", j.now.Sub(t.CreatedAt).Round(time.Second), j.policy.MaxAge)
	default:
		return nil
	}
	return r
}

// wantedStill says whether somebody has a snapshot in use, or under a name that can be moved.
func (c *Center) wantedStill(tx store.Tx, t *spore.Template) (bool, error) {
	if t.Retain {
		return true, nil
	}
	aliases, _, err := tx.Aliases(store.AliasFilter{Paging: store.Paging{Limit: 1}, TemplateID: t.ID})
	if err != nil || len(aliases) > 0 {
		return true, err
	}
	unused, err := c.unused(tx, t)
	return !unused, err
}

// removalsAtATime bounds one round of applying the policy; the next goes on.
const removalsAtATime = 500

// applyRetention removes the snapshots that the policy does not keep, each with a job of its own, as if somebody had asked
// for it.
func (c *Center) applyRetention(ctx context.Context) error {
	plan, err := c.plannedRemovals(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range plan[:min(len(plan), removalsAtATime)] {
		if err := ctx.Err(); err != nil {
			return err
		}
		wanted := false
		err := c.store.View(ctx, func(tx store.Tx) error {
			t, err := tx.FindTemplate(r.TemplateID)
			if err == nil {
				wanted, err = c.wantedStill(tx, t)
			}
			return err
		})
		if err == nil && !wanted {
			c.log.Info("a policy removes a snapshot", "id", r.TemplateID, "policy", r.Policy, "detail", r.Detail)
			_, err = c.DeleteTemplate(ctx, Idempotency{}, r.TemplateID, DeleteRequest{})
		}
		switch spore.CodeOf(err) {
		case "", spore.CodeNotFound, spore.CodeInUse, spore.CodeBusy: // gone, or wanted at the last moment
		default:
			errs = append(errs, fmt.Errorf("removing %s, which the policy %s does not keep: %w", r.TemplateID, r.Policy, err))
		}
	}
	return errors.Join(errs...)
}
