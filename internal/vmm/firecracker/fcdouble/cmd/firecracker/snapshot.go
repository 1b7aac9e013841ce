package main

import (
	"errors"
	"os"
	"slices"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

func (m *machine) createSnapshot(p createParams) reply {
	refused := func(why string) reply { return faulted("Create snapshot error: %s", why) }
	switch m.current() {
	case notStarted:
		return reply{fault: onlyAfter}
	case running:
		return refused("Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")
	}
	st := vmState{
		Machine: m.cfg, Boot: m.boot, Drives: m.drives, Entropy: m.entropy, Balloon: m.balloon, PCI: m.pci, Registers: m.guest.registers(),
	}
	for _, n := range m.nics {
		st.Nets = append(st.Nets, n.Config)
	}
	if m.vsock != nil {
		st.Vsock = &m.vsock.cfg
		m.vsock.resetAll()
	}
	text, err := encodeState(m.rel, st)
	if err != nil {
		return refused("Cannot serialize the microVM state: " + err.Error())
	}
	if err := writeState(p.State, text); err != nil {
		return refused(err.Error())
	}
	diff := p.Type == "Diff"
	if diff && !m.mem.track && !m.rel.since(13) {
		return refused("Cannot get dirty bitmap: Error getting the KVM dirty bitmap. No such file or directory (os error 2)")
	}
	if err := m.mem.save(p.Memory, diff); err != nil {
		var why *saveError
		if errors.As(err, &why) {
			return refused(why.what + rust.Message(why.cause))
		}
		return refused("Cannot write memory file: " + err.Error())
	}
	return reply{}
}

func writeState(path string, text []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return say("Cannot perform open on the snapshot backing file: %s", rust.Message(err))
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		no, _ := errno(err)
		return say("Cannot perform sync_all on the snapshot backing file: %s", rust.Message(no))
	}
	return nil
}

func (m *machine) loadSnapshot(p loadParams) reply {
	if m.started() {
		return reply{fault: onlyBefore}
	}
	if m.configured {
		return faulted("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	}
	if err := m.restore(p); err != nil {
		return reply{fault: "Load snapshot error: Failed to restore from snapshot: " + err.Error(), dirty: true}
	}
	if p.Resume {
		m.change(running)
	}
	return reply{deprecated: p.Memory != nil || p.Diff && m.rel.since(13)}
}

// restore makes the VM that a state file describes, paused.
func (m *machine) restore(p loadParams) error {
	st, err := readState(m.rel, p.State)
	if err != nil {
		return say("Failed to get snapshot state from file: %w", err)
	}
	for _, o := range p.Networks {
		at := slices.IndexFunc(st.Nets, func(n netConfig) bool { return n.ID == o.ID })
		if at < 0 {
			return say("Failed to get snapshot state from file: Unknown Network Device.")
		}
		st.Nets[at].Tap = o.Tap
	}
	if p.Vsock != nil {
		if st.Vsock == nil {
			return say("Failed to get snapshot state from file: Unknown Vsock Device.")
		}
		st.Vsock.UDS = p.Vsock.UDS
	}
	m.cfg, m.boot = st.Machine, st.Boot
	m.cfg.TrackDirty = p.Track || p.Diff
	if p.HugePages != "" && p.HugePages != "Snapshot" {
		m.cfg.HugePages = p.HugePages
	}
	if m.mem, err = m.loadMemory(p, st.Machine.MemoryMiB<<20); err != nil {
		return say("Failed to load guest memory: Error creating guest memory from %w", err)
	}
	if err := openKVM(); err != nil {
		return say("Failed to build microVM from snapshot: Failed to create microVM and vCPUs: %w", err)
	}
	if err := m.restoreDevices(st); err != nil {
		transport := "MMIO"
		if st.PCI {
			transport = "PCI"
		}
		if !m.rel.since(13) {
			return say("Failed to build microVM from snapshot: Failed to restore MMIO device: Cannot restore devices: %w", err)
		}
		return say("Failed to build microVM from snapshot: Failed to restore devices: Error restoring %s devices: %w", transport, err)
	}
	if err := m.begin(st.Registers); err != nil {
		return say("Failed to build microVM from snapshot: %w", err)
	}
	m.change(paused)
	return nil
}

func (m *machine) loadMemory(p loadParams, size int64) (*memory, error) {
	path, kind := "", "File"
	if p.Memory != nil {
		path = *p.Memory
	} else {
		path, kind = p.Backend.Path, p.Backend.Type
	}
	if kind == "Uffd" {
		mem, pages, err := fromServer(m.rel, path, size, m.cfg.TrackDirty)
		m.pages = pages
		return mem, worded("uffd", err)
	}
	if m.cfg.HugePages == "2M" {
		return nil, say("file: Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.")
	}
	mem, err := fromFile(m.rel, path, size, m.cfg.TrackDirty)
	return mem, worded("file", err)
}

// worded puts the operating system's reason in an error in Rust's words.
func worded(from string, err error) error {
	if err == nil {
		return nil
	}
	text, reason := err.Error(), errors.Unwrap(err)
	if _, ok := errno(err); ok && reason != nil {
		text = text[:len(text)-len(reason.Error())] + rust.Message(reason)
	}
	return say("%s: %s", from, text)
}

// restoreDevices opens what the state file names: the paths are those of the VM that was saved.
func (m *machine) restoreDevices(st vmState) error {
	for _, saved := range st.Drives {
		d, err := openDrive(saved.Config)
		if err != nil {
			return say("Block: %w", err)
		}
		m.drives = append(m.drives, d)
	}
	for _, saved := range st.Nets {
		n, err := openNIC(saved)
		if err != nil {
			return say("Net: Error creating net device: %w", err)
		}
		m.nics = append(m.nics, n)
	}
	if st.Vsock != nil {
		v, err := bindVsock(*st.Vsock)
		if err != nil {
			return say("VsockUnixBackend: Error binding to the host-side Unix socket: %s", rust.Message(err))
		}
		m.vsock = v
	}
	m.entropy, m.balloon, m.pci = st.Entropy, st.Balloon, st.PCI
	return nil
}
