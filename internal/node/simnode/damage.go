package simnode

// Harm is what befalls stored bytes.
type Harm int

const (
	Rot    Harm = iota // some are other than they were; only reading all shows it
	Damage             // a file is not what it was; any look shows it
	Loss               // it is gone
)

// HarmFrozen does harm to a frozen state: to what it alone was captured with or, for Loss, to its name, so that the node
// does not know of it any more. It answers whether the state was there.
func (m *Machine) HarmFrozen(id string, h Harm) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.manifests[id]
	if s == nil {
		return false
	}
	if h == Loss {
		delete(m.manifests, id)
		return true
	}
	top := s.memory[len(s.memory)-1]
	top.rotten, top.damaged = true, h == Damage
	return true
}

// HarmArtifact does harm to an artifact. It answers whether that was there.
func (m *Machine) HarmArtifact(id string, h Harm) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.artifacts[id]
	if a == nil {
		return false
	}
	if h == Loss {
		m.used -= a.bytes
		delete(m.artifacts, id)
		return true
	}
	a.rotten, a.damaged = true, h == Damage
	return true
}

// Wipe loses all that is on the machine, VMs and all, as the loss of its disk does.
func (m *Machine) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.powerLoss()
	m.used = 0
	clear(m.vms)
	clear(m.sandboxes)
	clear(m.manifests)
	clear(m.pieces)
	clear(m.artifacts)
	clear(m.blobs)
}
