package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// record is what a later server needs to find the process again and to be sure that it is the one. The command line would
// prove nothing more and is not to be trusted: the kernel tells that a program was started a moment before the program's
// arguments can be read.
type record struct {
	ID     string `json:"id"`
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`  // ticks since boot
	BootID string `json:"bootId"` // of the host
	Format string `json:"format"` // of the device state
	Shape  shape  `json:"shape"`
	Shared bool   `json:"shared"`
	Memory string `json:"memory"`
}

func (m *machine) writeRecord() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	text, err := json.Marshal(record{
		ID: m.cfg.ID, PID: m.proc.pid, Start: m.proc.start, BootID: boot,
		Format: m.format, Shape: m.shape, Shared: m.shared, Memory: m.cfg.Memory,
	})
	if err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	// It matters only as long as this host is up, so it need not reach the medium, only be whole.
	aside := m.work.join(nameRecord + ".new")
	if err := os.WriteFile(aside, text, 0o600); err != nil {
		return diskError("record the VM", err)
	}
	return os.Rename(aside, m.work.join(nameRecord))
}

func parseRecord(text []byte) (record, error) {
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, fmt.Errorf("qemu: the VM's record: %w", err)
	}
	if r.PID <= 0 || r.BootID == "" {
		return record{}, errors.New("qemu: the VM's record is not whole")
	}
	return r, nil
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("qemu: %w", err)
	}
	return string(bytes.TrimSpace(text)), nil
}

// lives says whether the recorded process is still there.
func (r record) lives() bool {
	boot, err := bootID()
	if err != nil || boot != r.BootID {
		return false
	}
	start, err := startTime(r.PID)
	return err == nil && start == r.Start
}

// adoptedSets is where the numbers of descriptor sets go on after a change of servers: the last one may have been cut
// short in using its own.
const adoptedSets = 1 << 16

// Adopt takes over a VM that runs already; see vmm.Engine.
func (e *Engine) Adopt(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := check(cfg, false); err != nil {
		return nil, err
	}
	path, err := workPath(cfg.Dir)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(path, nameRecord))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "no VM was started in %s", cfg.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	r, err := parseRecord(text)
	if err != nil {
		return nil, err
	}
	w, err := openWorkdir(path)
	if err != nil {
		return nil, err
	}
	m := newMachine(e.log, cfg, r.Format, r.Shape, w)
	m.shared, m.fdset = r.Shared, adoptedSets
	vm, err := m.adopt(ctx, r)
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return vm, nil
}

func (m *machine) adopt(ctx context.Context, r record) (vmm.VM, error) {
	ended := func() error {
		return spore.Errorf(spore.CodeNotFound, "the VM %s (process %d) has ended: %s", r.ID, r.PID, m.lastWords())
	}
	s, err := shapeOf(m.cfg)
	if err != nil {
		return nil, err
	}
	if d := r.Shape.diff(s); d != "" || r.ID != m.cfg.ID || r.Memory != m.cfg.Memory {
		return nil, spore.Errorf(spore.CodeConflict, "the VM in %s was started with another configuration: %s", m.cfg.Dir, d)
	}
	if !r.lives() {
		return nil, ended()
	}
	p, err := watch(r.PID, nil)
	if errors.Is(err, errGone) {
		return nil, ended()
	}
	if err != nil {
		return nil, err
	}
	if p.start != r.Start { // it ended between the two looks and its pid is another's now
		return nil, ended()
	}
	if err := m.connect(); err != nil {
		return nil, err
	}
	m.follow(p)
	var status struct {
		Running bool
		Status  string
	}
	err = m.qmp.Start(ctx)
	if err == nil {
		err = m.qmp.Do(ctx, "query-status", nil, &status)
	}
	if err == nil && status.Status == "inmigrate" {
		err = spore.Errorf(spore.CodeNotFound, "the VM %s was being thawed when the server that did it ended", r.ID)
	}
	if err != nil {
		return nil, errors.Join(m.settle(err), m.disconnect())
	}
	m.setRunning(status.Running)
	return m, nil
}

// Clean ends the VM in dir, if one lives; see vmm.Engine.
func (e *Engine) Clean(ctx context.Context, dir string) error {
	path, err := workPath(dir)
	if err != nil {
		return err
	}
	pid := 0
	text, err := os.ReadFile(filepath.Join(path, nameRecord))
	switch r, parseErr := parseRecord(text); {
	case err == nil && parseErr == nil:
		if r.lives() {
			pid = r.PID
		}
	case err == nil || errors.Is(err, fs.ErrNotExist):
		// The server ended between starting the process and writing its record, or the record is damaged.
		pid = findProcess(path)
	default:
		return fmt.Errorf("qemu: %w", err)
	}
	if pid == 0 {
		return nil
	}
	p, err := watch(pid, nil)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	// Looked at again with the process held by its descriptor: now the pid cannot change hands.
	if r, err := parseRecord(text); err == nil && !r.lives() {
		return nil
	}
	if err := p.kill(); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("qemu: waiting for the end of process %d: %w", pid, ctx.Err())
	}
}
