package simnode

import (
	"context"
	"errors"
	"slices"

	"github.com/sporevm/spore"
)

// What ClusterOptions.Fault may answer beside errors that a step then fails with.
var (
	// ErrLate, at an "arrive" step: the call does not arrive now but when Machine.Deliver says so. Its caller is told that the
	// node does not answer.
	ErrLate = errors.New("the call arrives late")
	// ErrTwice, at an "arrive" step: the call is done now, and arrives once more when Machine.Deliver says so.
	ErrTwice = errors.New("the call arrives twice")
	// ErrLost, at any step: the work is done, but the caller is told that the node does not answer.
	ErrLost = errors.New("the answer is lost")
	// ErrCrash, at any step: Machine.Crash, right there.
	ErrCrash = errors.New("the node's process ends")
	// ErrPowerLoss, at any step: Machine.PowerLoss, right there.
	ErrPowerLoss = errors.New("the machine loses power")
)

// Steps lists the points at which a call can be interrupted, in order, by call. Every call also has "arrive" and "answer".
// "exit:report" is no call: it is the node telling that a VM ended.
var Steps = map[string][]string{
	"resolve":        {"registry"},
	"build":          {"resolve", "pull", "unpack", "write", "commit"},
	"verifyArtifact": {"read"},
	"dropArtifact":   {"remove"},
	"openArtifact":   {"open"},
	"bake":           {"begin", "boot", "ready", "freeze", "commit"},
	"rebake":         {"begin", "boot", "ready", "freeze", "commit"},
	"fetch":          {"begin", "copy", "commit"},
	"probe":          {"begin", "thawed", "greeted"},
	"promote":        {"commit"},
	"verify":         {"read"},
	"diff":           {"read"},
	"kernel":         {},
	"start":          {"begin", "thawed", "greeted"},
	"publish":        {"listen"},
	"adjust":         {"apply"},
	"settle":         {"begin", "end"}, // "end" for each VM
	"freeze":         {"begin", "paused", "captured", "commit"},
	"suspend":        {"begin", "paused", "captured", "commit"},
	"wake":           {"resume"},
	"flatten":        {"begin", "merge", "commit"},
	"frozen":         {},
	"frozenIDs":      {},
	"forget":         {"commit"},
	"recover":        {"begin", "vm"}, // "vm" for each VM that an earlier process left
	"report":         {},
	"agent":          {},
	"request":        {"serve"}, // to an agent
	"logs":           {},
	"check":          {"begin"},
	"collect":        {"plan", "remove"}, // "remove" for each item
	"usage":          {},
	"exit":           {"report"},
}

// call is one call of a controller that the node is working on. Its methods are called with the machine's lock held, and
// give it up while they wait: what was looked up before a step may be otherwise after it.
type call struct {
	m       *Machine
	ctx     context.Context
	name    string
	life    int  // the process of the node that it came to
	lost    bool // nobody gets the answer
	unheard bool // nobody listens on the way either

	reserved int64
	states   []*manifest // whose pieces are needed until the call ends
	needs    []string    // artifacts that are needed until the call ends
	undo     []func()
}

// lateCall is a call that has not arrived yet.
type lateCall struct {
	name string
	run  func() error
}

// ask makes a call: it arrives, works, and is answered.
func ask[T any](ctx context.Context, h *Handle, name string, work func(*call) (T, error)) (T, error) {
	var none T
	m := h.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.closed {
		return none, unreachable(m.id)
	}
	c := &call{m: m, ctx: ctx, name: name, life: m.life}
	err := c.fault("arrive")
	if errors.Is(err, ErrLate) || errors.Is(err, ErrTwice) {
		ctx := context.WithoutCancel(ctx)
		m.late = append(m.late, lateCall{name: name, run: func() error {
			m.mu.Lock()
			defer m.mu.Unlock()
			_, err := serve(&call{m: m, ctx: ctx, name: name, life: m.life, unheard: true}, work)
			return err
		}})
	}
	switch {
	case errors.Is(err, ErrLate), errors.Is(err, errGone), m.cut:
		return none, unreachable(m.id)
	case err != nil && !errors.Is(err, ErrTwice):
		return none, err
	}
	return serve(c, work)
}

// serve does a call that has arrived.
func serve[T any](c *call, work func(*call) (T, error)) (T, error) {
	var none T
	c.m.count[c.name]++
	c.m.calls[c] = true
	v, err := work(c)
	if err == nil {
		err = c.fault("answer")
		if err != nil && !errors.Is(err, errGone) { // whatever it is, the work is done
			c.lost = true
		}
	} else if c.alive() {
		for _, fn := range slices.Backward(c.undo) {
			fn()
		}
	}
	if c.alive() {
		c.m.reserved -= c.reserved
		delete(c.m.calls, c)
	}
	switch {
	case c.lost, c.m.cut, !c.alive():
		return none, unreachable(c.m.id)
	case err != nil:
		return none, err
	}
	return v, nil
}

// errGone is what a call ends with when its process has.
var errGone = errors.New("the node's process has ended")

func unreachable(node string) error {
	return spore.Errorf(spore.CodeUnreachable, "node %s does not answer", node).WithHint("see: spore node ls")
}

func (c *call) alive() bool { return c.life == c.m.life }

// step is a point at which a call can be interrupted.
func (c *call) step(name string) error {
	if err := c.fault(name); err != nil {
		return err
	}
	return c.ctx.Err()
}

func (c *call) fault(step string) error {
	var err error
	if fault := c.m.cluster.fault; fault != nil {
		c.aside(func() { err = fault(c.m.id, c.name+":"+step) })
	}
	switch {
	case errors.Is(err, ErrLost):
		c.lost, err = true, nil
	case errors.Is(err, ErrCrash):
		c.m.crash()
	case errors.Is(err, ErrPowerLoss):
		c.m.powerLoss()
	}
	if !c.alive() {
		return errGone
	}
	return err
}

// aside runs what must not find the machine locked.
func (c *call) aside(fn func()) {
	c.m.mu.Unlock()
	defer c.m.mu.Lock()
	fn()
}

// note tells the caller how far it has come.
func (c *call) note(note func(string), line string) {
	if note != nil && !c.unheard {
		c.aside(func() { note(line) })
	}
}

// onError registers what to undo when the call fails; not when the process ends, which is what Recover is for.
func (c *call) onError(fn func()) { c.undo = append(c.undo, fn) }

// hold keeps the pieces of a frozen state, and its artifact, from being collected until the call ends.
func (c *call) hold(s *manifest) {
	c.states = append(c.states, s)
	c.needs = append(c.needs, s.artifact)
}

// Late names the calls that have not arrived yet, in the order they were made.
func (m *Machine) Late() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, len(m.late))
	for i, l := range m.late {
		names[i] = l.name
	}
	return names
}

// Deliver lets the i-th late call arrive, and does it; its error is what the caller would have been told. Steps of it other
// than "arrive" are subject to faults.
func (m *Machine) Deliver(i int) error {
	m.mu.Lock()
	if i < 0 || i >= len(m.late) {
		m.mu.Unlock()
		return spore.Errorf(spore.CodeNotFound, "no call %d is on its way to %s", i, m.id)
	}
	l := m.late[i]
	m.late = slices.Delete(m.late, i, i+1)
	m.mu.Unlock()
	return l.run()
}
