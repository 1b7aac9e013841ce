package centersim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// clients ask the servers for things, under idempotency keys, and ask again when they were not answered.
type clients struct {
	w      *world
	mu     sync.Mutex
	next   int
	flying sync.WaitGroup

	templates []string // ids that were answered, deleted ones too
	sandboxes []string
	answers   map[string]string // what a key was first answered
	again     []func(*controller)
	ports     int // the last that was asked for
}

const image = "registry.example/app:1"

func (c *clients) init(w *world) { c.w, c.answers = w, map[string]string{} }

func (c *clients) wait() { c.flying.Wait() }

// act has a client ask for something, now and then.
func (c *clients) act() {
	w := c.w
	alive := w.living()
	if len(alive) == 0 || w.rand.IntN(8) != 0 {
		return
	}
	via := alive[w.rand.IntN(len(alive))]
	c.mu.Lock()
	again := c.again
	c.mu.Unlock()
	if len(again) > 0 && w.rand.IntN(3) == 0 {
		i := w.rand.IntN(len(again))
		c.send(via, again[i])
		return
	}
	c.next++
	key := center.Idempotency{Caller: "client", Key: fmt.Sprintf("key-%d", c.next), Digest: "d"}
	t, s := c.pick(c.templates), c.pick(c.sandboxes)
	n := w.machines[w.rand.IntN(len(w.machines))].ID()
	chance := w.rand.IntN(100)
	ttl := time.Duration(w.rand.IntN(3)) * time.Minute
	wiring := center.Wiring{Limits: spore.Limits{CPUs: 0.5 * float64(w.rand.IntN(3))}}
	for range w.rand.IntN(3) {
		wiring.Ports = append(wiring.Ports, c.port())
	}
	switch {
	case t == "" || chance < 6:
		p := spore.ReplicaPolicy{Min: w.rand.IntN(len(w.machines) + 1), Pinned: w.rand.IntN(4) == 0}
		name := fmt.Sprintf("t%d", w.rand.IntN(4))
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			t, _, err := a.center.BuildTemplate(ctx, key, center.BuildRequest{
				Name: name, Image: image, Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}, Replicas: p,
				Network: &spore.Network{Mode: spore.NetworkUser},
			})
			return c.template(t, err)
		})
	case s == "" || chance < 30:
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			s, err := a.center.CreateSandbox(ctx, key, center.CreateRequest{Template: t, TTL: ttl, Wiring: wiring})
			return c.sandbox(s, err)
		})
	case chance < 33:
		release, keep := w.rand.IntN(4) > 0, w.rand.IntN(4) > 0
		c.do(via, func(ctx context.Context, a *controller) {
			t, err := a.center.HoldSnapshot(ctx, center.Idempotency{}, s, center.SnapshotRequest{}, 30*time.Second)
			if err == nil && release {
				_, _ = a.center.ReleaseSnapshot(ctx, t.ID, keep)
			}
		})
	case chance < 45:
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			t, err := a.center.CreateSnapshot(ctx, key, s, center.SnapshotRequest{})
			return c.template(t, err)
		})
	case chance < 55:
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			s, err := a.center.Rollback(ctx, key, s, t)
			return c.sandbox(s, err)
		})
	case chance < 60:
		count := 1 + w.rand.IntN(3)
		from := s
		if w.rand.IntN(2) == 0 {
			from = t
		}
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			list, err := a.center.Fork(ctx, key, from, center.ForkRequest{Count: count, TTL: ttl})
			return c.forks(list, err)
		})
	case chance < 63:
		one := c.port()
		c.do(via, func(ctx context.Context, a *controller) {
			s, err := a.center.PublishPorts(ctx, s, []spore.PortForward{one})
			if err == nil && len(s.Ports) > 1 {
				_, _ = a.center.UnpublishPorts(ctx, s.ID, []center.PortPlace{{Port: s.Ports[0].HostPort}})
			}
		})
	case chance < 66:
		limits := center.LimitsUpdate{CPUs: &wiring.Limits.CPUs}
		c.do(via, func(ctx context.Context, a *controller) {
			_, _ = a.center.UpdateSandbox(ctx, s, center.SandboxUpdate{Limits: limits})
		})
	case chance < 69:
		c.do(via, func(ctx context.Context, a *controller) { _, _ = a.center.PauseSandbox(ctx, s) })
	case chance < 74:
		c.do(via, func(ctx context.Context, a *controller) { _, _ = a.center.ResumeSandbox(ctx, s, nil) })
	case chance < 80:
		c.do(via, func(ctx context.Context, a *controller) { _ = a.center.KillSandbox(ctx, s) })
	case chance < 85:
		name := fmt.Sprintf("t%d", w.rand.IntN(4))
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			t, _, err := a.center.CommitSandbox(ctx, key, s, center.CommitRequest{Name: name})
			return c.template(t, err)
		})
	case chance < 90:
		mode := []spore.RedoMode{spore.RedoAll, spore.RedoNodes, spore.RedoFailedOnly, spore.RedoFailedNodes}[w.rand.IntN(4)]
		req := center.RedoRequest{Mode: mode}
		if mode == spore.RedoNodes || mode == spore.RedoFailedNodes {
			req.Nodes = []string{n}
		}
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			j, err := a.center.RedoTemplate(ctx, key, t, req)
			if err != nil {
				return "", err
			}
			return j.ID, nil
		})
	case chance < 95:
		force := w.rand.IntN(2) == 0
		c.ask(via, key, func(ctx context.Context, a *controller) (string, error) {
			d, err := a.center.DeleteTemplate(ctx, key, t, center.DeleteRequest{Force: force})
			if err != nil {
				return "", err
			}
			return d.JobID, nil
		})
	case chance < 96:
		drain := w.rand.IntN(2) == 0
		c.do(via, func(ctx context.Context, a *controller) { _, _ = a.center.DrainNode(ctx, n, drain) })
	case chance < 98:
		c.do(via, func(ctx context.Context, a *controller) { _, _ = a.center.CollectGarbage(ctx, false) })
	default:
		c.do(via, func(ctx context.Context, a *controller) {
			jobs, _, err := a.center.Jobs(ctx, center.JobQuery{Statuses: []spore.JobStatus{spore.JobPending, spore.JobRunning}})
			if err == nil && len(jobs) > 0 {
				_, _ = a.center.CancelJob(ctx, jobs[0].ID)
			}
		})
	}
}

// port is one to publish: at a place that nobody else asks for, or at any.
func (c *clients) port() spore.PortForward {
	p := spore.PortForward{GuestPort: 1 + c.w.rand.IntN(3)}
	if c.w.rand.IntN(3) == 0 {
		c.ports++
		p.HostPort = c.ports
	}
	return p
}

func (c *clients) pick(list []string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(list) == 0 {
		return ""
	}
	return list[c.w.rand.IntN(len(list))]
}

// ask sends a request that may be sent again under its key.
func (c *clients) ask(via *controller, key center.Idempotency, do func(context.Context, *controller) (string, error)) {
	send := func(a *controller) {
		id, err := do(context.WithValue(a.life, requestKey{}, key.Key), a)
		if err != nil {
			if spore.CodeOf(err) == spore.CodeInternal && !a.dead && a.life.Err() == nil {
				c.w.log.Info("an internal error was answered", "err", err)
			}
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if first, answered := c.answers[key.Key]; answered && first != id {
			c.w.failf("key %s was answered %s, and now %s", key.Key, first, id)
		}
		c.answers[key.Key] = id
	}
	c.mu.Lock()
	c.again = append(c.again, send)
	if len(c.again) > 20 {
		c.again = c.again[1:]
	}
	c.mu.Unlock()
	c.send(via, send)
}

func (c *clients) do(via *controller, do func(context.Context, *controller)) {
	c.next++
	name := fmt.Sprint("request ", c.next)
	c.send(via, func(a *controller) { do(context.WithValue(a.life, requestKey{}, name), a) })
}

func (c *clients) send(via *controller, do func(*controller)) {
	c.flying.Go(func() { do(via) })
}

func (c *clients) template(t *spore.Template, err error) (string, error) {
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.templates, t.ID) {
		c.templates = append(c.templates, t.ID)
	}
	return t.ID, nil
}

func (c *clients) sandbox(s *spore.Sandbox, err error) (string, error) {
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.sandboxes, s.ID) {
		c.sandboxes = append(c.sandboxes, s.ID)
	}
	return s.ID, nil
}

func (c *clients) forks(list []center.ForkResult, err error) (string, error) {
	if err != nil {
		return "", err
	}
	ids := ""
	for _, f := range list {
		if f.Sandbox != nil {
			id, _ := c.sandbox(f.Sandbox, nil)
			ids += id + " "
		}
	}
	if ids == "" {
		return "", errLost
	}
	return ids, nil
}
