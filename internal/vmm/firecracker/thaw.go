package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Thaw starts a VM from a frozen one; see vmm.Engine.
func (e *Engine) Thaw(ctx context.Context, cfg vmm.Config, from vmm.Image) (vmm.VM, error) {
	if err := check(cfg, false); err != nil {
		return nil, err
	}
	size, err := fileSize(cfg.Memory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no memory file %s", cfg.Memory).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	if size != ramBytes(cfg) {
		return nil, spore.Errorf(spore.CodeConflict, "the memory file %s is of %d bytes and the VM has %d MiB", cfg.Memory, size, cfg.MemoryMiB)
	}
	p, err := e.platform(ctx)
	if err != nil {
		return nil, err
	}
	s, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	saved, err := readState(from.State, s)
	if err != nil {
		return nil, err
	}
	b, err := p.readerOf(saved.envelope)
	if err != nil {
		return nil, err
	}
	if nic := cfg.NIC; nic != nil && saved.Tap != tapName(*nic) && !b.Features.NetworkOverrides {
		return nil, spore.Errorf(spore.CodeUnsupported, "the snapshot wants the TAP device %s, and Firecracker %s can load it with no other", saved.Tap, b.Version).
			WithHint("install Firecracker 1.12 or newer, or name the TAP device as it was")
	}
	m, err := e.prepare(ctx, p, b, cfg)
	if err != nil {
		return nil, err
	}
	if err := m.thawUp(ctx, saved, from.Patches); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// readerOf picks the binary for a state's format and checks that the processor is the one it was saved on.
func (p platform) readerOf(saved envelope) (*Binary, error) {
	snapshot, cpu, ok := parseStateFormat(saved.Format)
	if !ok {
		return nil, spore.Errorf(spore.CodeStale, "the device state was saved as %.100q, which is not Firecracker's", saved.Format).
			WithHint("make the template anew")
	}
	if digestOf(p.cpu.features) != cpu {
		return nil, spore.Errorf(spore.CodeStale, "the device state was saved on another kind of processor (%s; this host's is %s)", cpu, digestOf(p.cpu.features)).
			WithHint("thaw it on a node with the same processor, or make the template anew")
	}
	writer := "" // for people, and so nothing but a version
	if v, err := ParseVersion([]byte("v" + saved.Writer)); err == nil {
		writer = v.String()
	}
	return reader(p.all, snapshot, writer)
}

// thawUp loads memory and device state; the VM is paused then.
func (m *machine) thawUp(ctx context.Context, saved savedState, patches vmm.Patches) error {
	j := m.jail
	params := snapshotLoadParams{SnapshotPath: filepath.Join(nameScratch, nameState)}
	if j.binary.Features.TrackDirtyPages {
		params.TrackDirtyPages = true
	} else {
		params.EnableDiffSnapshots = true
	}
	if m.eng.opts.ClockRealtime && j.binary.Features.ClockRealtime {
		params.ClockRealtime = true
	}
	params.HugePages = m.pages()
	var err error
	if params.MemBackend, err = m.openMemoryFor(ctx, patches); err != nil {
		return err
	}
	if nic := m.cfg.NIC; nic != nil {
		tap, err := j.plug(nic)
		if err != nil {
			return err
		}
		if m.tap = tap; j.binary.Features.NetworkOverrides {
			params.NetworkOverrides = []networkOverride{{IfaceID: ifaceID, HostDevName: tap}}
		}
	}
	if err := m.putState(saved.payload); err != nil {
		return err
	}
	if err := j.api.loadSnapshot(ctx, params); err != nil {
		return m.loadError(err)
	}
	if err := m.dropScratch(nameState); err != nil {
		return err
	}
	for i, d := range m.cfg.Drives {
		if m.limits[i] = saved.limits(i); m.limits[i] == d.Limits {
			continue
		}
		if err := j.api.patchDrive(ctx, partialDrive{DriveID: d.ID, RateLimiter: limiter(d.Limits)}); err != nil {
			return m.settle(err)
		}
		m.limits[i] = d.Limits
	}
	if p := m.pageServer(); p != nil {
		if err := p.Attached(ctx); err != nil {
			return err
		}
	}
	m.loaded = true
	return m.writeRecord()
}

// putState gives Firecracker the device state.
func (m *machine) putState(payload []byte) error {
	path := filepath.Join(m.jail.root(), nameScratch, nameState)
	if m.jail.jailed {
		path = fmt.Sprintf("/proc/%d/root/%s/%s", m.jail.proc.pid, nameScratch, nameState)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError("hand over the device state", err)
	}
	if m.jail.uid >= 0 {
		err = f.Chown(m.jail.uid, m.jail.uid)
	}
	if err == nil {
		_, err = f.Write(payload)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return diskError("hand over the device state", err)
	}
	return nil
}

// loadError says why a snapshot was not loaded. The state's checksum was right, so a state that Firecracker does not
// take is not what its writer wrote.
func (m *machine) loadError(err error) error {
	var refused *APIError
	if errors.As(err, &refused) {
		return spore.Errorf(spore.CodeDamaged, "Firecracker %s does not take the device state: %s", m.jail.binary.Version, refused.Message).WithCause(err)
	}
	return m.settle(err)
}
