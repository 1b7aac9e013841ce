package center

import (
	"context"
	"maps"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// resolution is what a create comes down to.
type resolution struct {
	template *spore.Template
	request  CreateRequest // with what the template adds
	nodeID   string
	cold     bool // it is booted rather than thawed
	wish     wish
	spots    []spot
	stages   []StageTime
	last     time.Time
}

// stage ends one stage. Durations are measured by the real clock, whatever the center's.
func (r *resolution) stage(name string) {
	now := time.Now()
	r.stages = append(r.stages, StageTime{name, now.Sub(r.last)})
	r.last = now
}

// resolve turns a create request into a complete one, inside tx. On error the answer says how far it came; it is never nil.
func (c *Center) resolve(tx store.Tx, req CreateRequest) (r *resolution, err error) {
	r = &resolution{request: req, last: time.Now()}
	if r.template, err = tx.FindTemplate(req.Template); err != nil {
		return r, err
	}
	t := r.template
	if err := t.Startable(); err != nil {
		return r, err
	}
	kept, err := t.Defaults()
	if err != nil {
		return r, err
	}
	r.request = inherited(kept, req)
	if r.cold, err = fitDisks(t, kept.Disks, req.Disks); err != nil {
		return r, err
	}
	if err := r.request.Wiring.fits(req.Wiring, t); err != nil {
		return r, err
	}
	if err := c.knownNodes("nodes", req.Nodes...); err != nil {
		return r, err
	}
	r.stage(stageRequest)
	replicas, err := c.replicasOf(tx, t.ID)
	if err != nil {
		return r, err
	}
	r.stage(stageLocality)
	w := wish{scope: req.Nodes, preferred: req.PreferredNode, hard: req.PreferredNode != "", network: r.request.Wiring.Mode}
	if w.hard {
		if err := c.knownNodes("preferredNode", w.preferred); err != nil {
			return r, err
		}
	}
	if t.Kind == spore.KindSnapshot && w.preferred == "" {
		w.preferred = t.OriginNode // its bytes are warm there
	}
	r.stage(stageKind)
	r.wish = w
	r.nodeID, r.spots, err = c.place(tx, t, replicas, w)
	r.stage(stageBind)
	return r, err
}

// knownNodes refuses a field of a request that names a node which does not exist.
func (c *Center) knownNodes(field string, ids ...string) error {
	for _, id := range ids {
		if n := c.fleet.facts(id); n == nil || n.State == spore.NodeForgotten {
			return spore.Invalidf(field, "there is no node %q", id).WithHint("spore node ls").Because(spore.ReasonNoNodes)
		}
	}
	return nil
}

// inherited lays a caller's request over what the template was stored with: maps are joined, the caller's entries
// win; single values are the caller's if it gave any.
func inherited(d spore.CreateDefaults, req CreateRequest) CreateRequest {
	req.Env, req.Labels = joined(d.Env, req.Env), joined(d.Labels, req.Labels)
	if req.TTL == 0 {
		req.TTL = time.Duration(d.TTLSeconds) * time.Second
	}
	if req.OnEnd == "" {
		req.OnEnd = d.OnEnd
	}
	req.Wiring = req.Wiring.over(d)
	return req
}

func joined(under, over map[string]string) map[string]string {
	if len(under) == 0 {
		return over
	}
	all := maps.Clone(under)
	maps.Copy(all, over)
	return all
}

// PreviewSandbox says what a create would do, and does nothing.
func (c *Center) PreviewSandbox(ctx context.Context, req CreateRequest) (*Preview, error) {
	if err := checkCreate(req); err != nil {
		return nil, err
	}
	p := &Preview{Request: req}
	err := c.glimpse(ctx, func(tx store.Tx) error {
		r, err := c.resolve(tx, req)
		p.Request, p.Template, p.NodeID, p.Stages = r.request, r.template, r.nodeID, r.stages
		if r.template == nil && !isNotFound(err) {
			return err
		}
		if r.template != nil {
			p.Resources = r.template.Resources
		}
		p.Candidates = make([]Candidate, len(r.spots))
		for i, s := range r.spots {
			p.Candidates[i] = Candidate{NodeID: s.nodeID, Fits: s.whyNot == "", Why: s.why(r.wish), Compat: s.compat}
			if n := c.fleet.facts(s.nodeID); n != nil {
				p.Candidates[i].Address = n.Address
			}
			switch {
			case s.nodeID == r.nodeID:
				p.Candidates[i].Why = "chosen"
			case s.whyNot == "":
				p.Candidates[i].Why = "it fits, but less well"
			}
		}
		if err != nil {
			p.Err = spore.AsError(err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}
