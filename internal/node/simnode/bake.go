package simnode

import (
	"context"
	"fmt"
	"slices"

	"github.com/sporevm/spore"
)

// Bake is center.Node's.
func (h *Handle) Bake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error) {
	mine := *t
	return ask(ctx, h, "bake", func(c *call) (*spore.Frozen, error) { return c.bake(&mine, as, note, false) })
}

// Rebake is center.Node's.
func (h *Handle) Rebake(ctx context.Context, t *spore.Template, as string, note func(string)) (*spore.Frozen, error) {
	mine := *t
	return ask(ctx, h, "rebake", func(c *call) (*spore.Frozen, error) { return c.bake(&mine, as, note, true) })
}

func (c *call) bake(t *spore.Template, as string, note func(string), onDisk bool) (*spore.Frozen, error) {
	m := c.m
	if !onDisk {
		defer c.release(t.ArtifactID)
	}
	if err := c.step("begin"); err != nil {
		return nil, err
	}
	if s := m.manifests[as]; s != nil {
		return s.facts(), nil
	}
	from := &manifest{artifact: t.ArtifactID}
	if onDisk {
		s, err := m.frozen(t.ID)
		if err != nil {
			return nil, err
		}
		if t.ArtifactID != "" && t.ArtifactID != s.artifact {
			return nil, spore.Errorf(spore.CodeConflict, "the disk of %s belongs over artifact %s, not %s", t.ID, s.artifact, t.ArtifactID)
		}
		if err := m.intact(s, s.disk, false); err != nil { // its memory is not needed
			return nil, err
		}
		c.hold(s)
		from = s
	}
	bound, err := m.bind(t.KernelID)
	if err != nil {
		return nil, err
	}
	if err := m.verifyArtifact(from.artifact, false); err != nil {
		return nil, err
	}
	c.needs = append(c.needs, from.artifact)
	s := booted(as, m.newID("c"), t.Resources, from.artifact, bound, from.files)
	s.nic = t.NIC
	if err := c.reserve(forKeeping, m.newBytes(s)+diskBytes); err != nil {
		return nil, err
	}
	v, err := c.newVM("", 0, &manifest{resources: t.Resources, artifact: from.artifact, bound: bound, files: from.files})
	if err != nil {
		return nil, err
	}
	c.note(note, "booting")
	if err := c.step("boot"); err != nil {
		return nil, err
	}
	c.note(note, fmt.Sprintf("the agent answered after %d ms", bootDelay))
	if err := c.step("ready"); err != nil {
		return nil, err
	}
	c.note(note, "freezing")
	if err := c.step("freeze"); err != nil {
		return nil, err
	}
	if !v.running {
		return nil, spore.Errorf(spore.CodeConflict, "the template's VM ended before it was frozen")
	}
	m.removeVM(v)
	if err := c.step("commit"); err != nil {
		return nil, err
	}
	if m.manifests[as] != nil {
		return nil, taken(as)
	}
	c.commit(s)
	return s.timed(), nil
}

func taken(id string) error {
	return spore.Errorf(spore.CodeConflict, "there is a frozen state %s already", id)
}

// release ends what BuildArtifact holds an artifact for.
func (c *call) release(artifact string) {
	if a := c.m.artifacts[artifact]; a != nil && len(a.fresh) > 0 && c.alive() {
		a.fresh = a.fresh[1:]
	}
}

// bind answers the components that a VM with a kernel bundle gets now.
func (m *Machine) bind(kernel string) (spore.Components, error) {
	at := slices.IndexFunc(m.kernels, func(k spore.Components) bool { return k.GuestImage == kernel })
	if at < 0 {
		return spore.Components{}, spore.Errorf(spore.CodeNotFound, "no kernel bundle %s is installed on node %s", kernel, m.id).
			WithHint("install it: spore kernel install")
	}
	b := m.kernels[at]
	b.Engine, b.EngineVersion, b.StateFormat, b.CPU = m.current.Engine, m.current.EngineVersion, m.current.StateFormat, m.current.CPU
	return b, nil
}

// ResolveKernel is center.Node's.
func (h *Handle) ResolveKernel(ctx context.Context, id string) (string, error) {
	return ask(ctx, h, "kernel", func(c *call) (string, error) {
		if id != "" {
			_, err := c.m.bind(id)
			return id, err
		}
		if len(c.m.kernels) == 0 {
			return "", spore.Errorf(spore.CodeConflict, "no kernel bundle is installed").WithHint("install one: spore kernel install")
		}
		return c.m.kernels[len(c.m.kernels)-1].GuestImage, nil
	})
}

// Probe is center.Node's.
func (h *Handle) Probe(ctx context.Context, _ *spore.Template, frozenID string) error {
	_, err := ask(ctx, h, "probe", func(c *call) (any, error) {
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		v, err := c.thaw("", 0, frozenID)
		if err != nil {
			return nil, err
		}
		if err := c.step("thawed"); err != nil {
			return nil, err
		}
		if err := c.step("greeted"); err != nil {
			return nil, err
		}
		if !v.running {
			return nil, errEnded
		}
		c.m.removeVM(v)
		return nil, nil
	})
	return err
}

// Promote is center.Node's.
func (h *Handle) Promote(ctx context.Context, from, to string) (*spore.Frozen, error) {
	return ask(ctx, h, "promote", func(c *call) (*spore.Frozen, error) {
		if err := c.step("commit"); err != nil {
			return nil, err
		}
		s := c.m.manifests[from]
		if s == nil { // it may have happened already
			if is := c.m.manifests[to]; is != nil && is.madeAs == from {
				return is.facts(), nil
			}
			_, err := c.m.frozen(from)
			return nil, err
		}
		if from == to {
			return nil, spore.Errorf(spore.CodeInternal, "promotion of %s to itself", from)
		}
		s = s.renamed(to)
		s.madeAs = from
		c.m.manifests[to] = s
		delete(c.m.manifests, from)
		return s.facts(), nil
	})
}

// Fetch is center.Node's. The artifact comes along when it is not there.
func (h *Handle) Fetch(ctx context.Context, t *spore.Template, as string, from []string, note func(string)) (*spore.Frozen, error) {
	id, from := t.ID, slices.Clone(from)
	return ask(ctx, h, "fetch", func(c *call) (*spore.Frozen, error) {
		if err := c.step("begin"); err != nil {
			return nil, err
		}
		if s := c.m.manifests[as]; s != nil {
			return s.facts(), nil
		}
		if c.m.opt.Alone {
			return nil, spore.Errorf(spore.CodeUnsupported, "node %s cannot be reached by others", c.m.id)
		}
		var err error = spore.Errorf(spore.CodeNotFound, "no node has the frozen state %s", id)
		for _, name := range from {
			var f *spore.Frozen
			if f, err = c.fetch(id, as, name, note); err == nil || !c.alive() || c.ctx.Err() != nil || spore.CodeOf(err) == spore.CodeNoSpace {
				return f, err
			}
			c.note(note, fmt.Sprintf("node %s: %s", name, spore.AsError(err).Message))
		}
		return nil, err
	})
}

func (c *call) fetch(id, as, from string, note func(string)) (*spore.Frozen, error) {
	m := c.m
	peer := m.cluster.peer(m.id, from)
	if peer == nil || !peer.Reachable() {
		return nil, unreachable(from)
	}
	if peer.opt.Alone {
		return nil, spore.Errorf(spore.CodeUnsupported, "node %s cannot be reached by others", from)
	}
	var s *manifest
	var rootfs artifact
	var err error
	c.aside(func() { s, rootfs, err = peer.lend(id) })
	if err != nil {
		return nil, err
	}
	s = s.renamed(as)
	c.hold(s)
	need := m.newBytes(s)
	if m.artifacts[rootfs.id] == nil {
		need += rootfs.bytes
	}
	if err := c.reserve(forKeeping, need); err != nil {
		return nil, err
	}
	c.note(note, fmt.Sprintf("copying %d bytes from %s", need, from))
	if err := c.step("copy"); err != nil {
		return nil, err
	}
	if !peer.Reachable() {
		return nil, unreachable(from)
	}
	if err := c.step("commit"); err != nil {
		return nil, err
	}
	if m.manifests[as] != nil {
		return nil, taken(as)
	}
	if m.artifacts[rootfs.id] == nil {
		m.artifacts[rootfs.id] = &artifact{id: rootfs.id, bytes: rootfs.bytes, digest: rootfs.digest}
		c.grow(rootfs.bytes)
	}
	for i, p := range s.pieces() { // what is here by now, also by another copy that was under way, is the same
		if there := m.pieces[p.id]; there != nil {
			s.replace(i, there)
		}
	}
	c.commit(s)
	for _, p := range s.pieces() { // what was damaged here has been written anew
		p.rotten, p.damaged = false, false
	}
	return s.timed(), nil
}

// lend answers copies of a frozen state and its artifact that are whole: what is sent is verified as it is read.
func (m *Machine) lend(id string) (*manifest, artifact, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.frozen(id)
	if err == nil {
		err = m.whole(s, true)
	}
	if err == nil {
		err = m.verifyArtifact(s.artifact, true)
	}
	if err != nil {
		return nil, artifact{}, err
	}
	s = s.renamed(id)
	for i, p := range s.pieces() {
		own := *p
		s.replace(i, &own)
	}
	return s, *m.artifacts[s.artifact], nil
}

// replace puts another piece in the place of the i-th of pieces. s must be nobody else's.
func (s *manifest) replace(i int, p *piece) {
	switch {
	case i < len(s.memory):
		s.memory = slices.Clone(s.memory)
		s.memory[i] = p
	case i < len(s.memory)+len(s.disk):
		s.disk = slices.Clone(s.disk)
		s.disk[i-len(s.memory)] = p
	default:
		s.device = p
	}
}
