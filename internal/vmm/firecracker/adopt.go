package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// vmRecord is what a later server needs to find the process again and to be sure that it is the one. Of a process that
// has no VM yet, as in the pool, the fields from ID on are empty.
type vmRecord struct {
	PID    int      `json:"pid"`
	Start  uint64   `json:"start"`  // ticks since boot
	BootID string   `json:"bootId"` // of the host
	Jail   string   `json:"jail"`
	Jailed bool     `json:"jailed"`
	UID    int      `json:"uid"`
	Binary *Binary  `json:"binary"`
	Cgroup []string `json:"cgroup,omitempty"`

	ID     string            `json:"id,omitempty"`
	Format string            `json:"format,omitempty"` // of the device state
	Shape  shape             `json:"shape"`
	Memory string            `json:"memory,omitempty"`
	Booted bool              `json:"booted,omitempty"`
	Loaded bool              `json:"loaded,omitempty"`
	Paged  bool              `json:"paged,omitempty"` // a pager serves its memory
	Tap    string            `json:"tap,omitempty"`
	Limits []vmm.DriveLimits `json:"limits,omitempty"`
}

func (j *jail) record() (vmRecord, error) {
	boot, err := bootID()
	if err != nil {
		return vmRecord{}, err
	}
	return vmRecord{
		PID: j.proc.pid, Start: j.proc.start, BootID: boot, Jail: j.id, Jailed: j.jailed, UID: j.uid, Binary: j.binary, Cgroup: j.cgroup,
	}, nil
}

func (m *machine) writeRecord() error {
	r, err := m.jail.record()
	if err != nil {
		return err
	}
	r.ID, r.Format, r.Shape, r.Memory, r.Booted, r.Loaded = m.cfg.ID, m.format, m.shape, m.cfg.Memory, m.booted, m.loaded
	r.Paged, r.Tap, r.Limits = m.pageServer() != nil, m.tap, m.limits
	return r.write(m.jail.work)
}

func (r vmRecord) write(work string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	return writeAside(filepath.Join(work, workRecord), text)
}

// writeAside replaces a file as a whole. What it holds matters only as long as this host is up, so it need not reach the
// medium.
func writeAside(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return diskError("record the VM", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return diskError("record the VM", err)
	}
	return nil
}

func parseRecord(text []byte) (vmRecord, error) {
	var r vmRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return vmRecord{}, fmt.Errorf("firecracker: the VM's record: %w", err)
	}
	if r.PID <= 0 || r.BootID == "" || r.Jail == "" || filepath.Base(r.Jail) != r.Jail || r.Jail == ".." || r.Binary == nil || r.Binary.Firecracker == "" {
		return vmRecord{}, errors.New("firecracker: the VM's record is not whole")
	}
	return r, nil
}

func readRecord(work string) (vmRecord, error) {
	text, err := os.ReadFile(filepath.Join(work, workRecord))
	if err != nil {
		return vmRecord{}, fmt.Errorf("firecracker: %w", err)
	}
	return parseRecord(text)
}

// lives says whether the recorded process is still there.
func (r vmRecord) lives() bool {
	boot, err := bootID()
	if err != nil || boot != r.BootID {
		return false
	}
	start, err := startTime(r.PID)
	return err == nil && start == r.Start
}

// Adopt takes over a VM that runs already; see vmm.Engine.
func (e *Engine) Adopt(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := check(cfg, false); err != nil {
		return nil, err
	}
	work, err := workPath(cfg.Dir)
	if err != nil {
		return nil, err
	}
	r, err := readRecord(work)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "no VM was started in %s", cfg.Dir)
	}
	if err != nil {
		return nil, err
	}
	s, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	if d := r.Shape.diff(s); d != "" || r.ID != cfg.ID || r.Memory != cfg.Memory {
		return nil, spore.Errorf(spore.CodeConflict, "the VM in %s was started with another configuration: %s", cfg.Dir, d)
	}
	j := &jail{work: work, id: r.Jail, binary: r.Binary, jailed: r.Jailed, uid: r.UID, cgroup: r.Cgroup}
	vm, err := e.adopt(ctx, cfg, r, j, s)
	if err != nil {
		return nil, err
	}
	return vm, nil
}

func (e *Engine) adopt(ctx context.Context, cfg vmm.Config, r vmRecord, j *jail, s shape) (_ *machine, err error) {
	ended := func() error {
		return spore.Errorf(spore.CodeNotFound, "the VM %s (process %d) has ended: %s", r.ID, r.PID, j.lastWords())
	}
	if !r.lives() {
		return nil, ended()
	}
	if j.proc, err = watch(r.PID, nil); errors.Is(err, errGone) || err == nil && j.proc.start != r.Start {
		return nil, ended() // the pid may be another's by now
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.letGo())
		}
	}()
	if j.rootDir, err = os.Open(j.root()); err != nil {
		return nil, fmt.Errorf("firecracker: %w", err)
	}
	j.api = newClient(func(ctx context.Context) (net.Conn, error) { return j.dial(ctx, nameAPI) })
	log := e.log.With("jail", j.id)
	if j.console, err = record(filepath.Join(j.work, workPipe), filepath.Join(j.work, workConsole), log); err != nil {
		return nil, err
	}
	if j.logs, err = record(j.file(nameLog), filepath.Join(j.work, workLog), log); err != nil {
		return nil, err
	}
	m := newMachine(e, cfg, r.Format, s, j)
	m.booted, m.loaded, m.tap = r.Booted, r.Loaded, r.Tap
	copy(m.limits, r.Limits)
	if m.owned, err = readOwned(j.work, ramBytes(cfg)); err != nil {
		return nil, err
	}
	info, err := j.api.instance(ctx)
	if err != nil {
		if err = m.settle(err); j.proc.ended() {
			return nil, ended()
		}
		return nil, err
	}
	if info.State == instanceNotStarted || !r.Booted && !r.Loaded {
		return nil, spore.Errorf(spore.CodeNotFound, "the VM %s was being started when the server that did it ended", r.ID)
	}
	m.running, m.ran = info.State == instanceRunning, true
	if r.Paged {
		if e.opts.Pager == nil {
			return nil, spore.Errorf(spore.CodeUnsupported, "the memory of %s is served by a pager, and this server has none", r.ID)
		}
		p, err := e.opts.Pager.Adopt(ctx, j.work)
		if err != nil {
			return nil, err
		}
		m.watchPager(p)
	}
	m.follow()
	return m, nil
}

// Clean ends the VM in dir, if one lives, and removes what it had beside its directory; see vmm.Engine.
func (e *Engine) Clean(ctx context.Context, dir string) error {
	work, err := workPath(dir)
	if err != nil {
		return err
	}
	return e.cleanWork(ctx, work)
}

// cleanWork ends what lives in a working directory and leaves nothing there but logs.
func (e *Engine) cleanWork(ctx context.Context, work string) error {
	if _, err := os.Stat(work); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r, err := readRecord(work)
	recorded := err == nil
	pid := 0
	switch {
	case recorded && r.lives():
		pid = r.PID
	case !recorded:
		// The server ended between starting the process and writing its record, or the record is damaged.
		if pid, err = findJail(work); err != nil {
			return err
		}
	}
	if pid != 0 {
		if err := end(ctx, pid, func() bool { return !recorded || r.lives() }); err != nil {
			return err
		}
	}
	var errs []error
	if e.opts.Pager != nil {
		errs = append(errs, e.opts.Pager.Clean(ctx, work))
	}
	if recorded {
		errs = append(errs, removeCgroups(r.Cgroup))
	} else if h := e.cgroups(); h.path != "" {
		ids, err := filepath.Glob(filepath.Join(globEscape(work), "*", "fc-*"))
		errs = append(errs, err)
		for _, id := range ids {
			errs = append(errs, removeCgroups([]string{filepath.Join(h.path, e.opts.CgroupParent, filepath.Base(id))}))
		}
	}
	return errors.Join(append(errs, removeRoot(work))...)
}

// end ends a process and waits for it. still is asked once the process is held by a descriptor: from then on its pid
// cannot change hands.
func end(ctx context.Context, pid int, still func() bool) error {
	p, err := watch(pid, nil)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	if !still() {
		return nil
	}
	if err := p.kill(); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("firecracker: waiting for the end of process %d: %w", pid, ctx.Err())
	}
}

// removeRoot removes the root directory and the memory of a VM that has ended, and leaves its logs.
func removeRoot(work string) error {
	entries, err := os.ReadDir(work)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() || e.Name() == nameMemory || e.Name() == workPipe || e.Name() == workWritten {
			errs = append(errs, os.RemoveAll(filepath.Join(work, e.Name())))
		}
	}
	return errors.Join(errs...)
}
