package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// Boot starts a VM from its kernel; see vmm.Engine.
func (e *Engine) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := check(cfg, true); err != nil {
		return nil, err
	}
	kernel, initrd := e.opts.Kernel, e.opts.Initrd
	if kernel == "" {
		kernel, initrd = cfg.Kernel, cfg.Initrd
	}
	p, err := e.platform(ctx, kernel, initrd)
	if err != nil {
		return nil, err
	}
	vm, err := e.boot(ctx, p, cfg)
	if err != nil {
		return nil, err
	}
	return vm, nil
}

func (e *Engine) boot(ctx context.Context, p platform, cfg vmm.Config) (*machine, error) {
	if err := createRAM(cfg); err != nil {
		return nil, err
	}
	m, err := e.start(ctx, p, cfg, false)
	if err == nil {
		if err = m.bootUp(ctx); err == nil {
			return m, nil
		}
		err = m.abandon(err)
	}
	return nil, errors.Join(err, os.Remove(cfg.Memory))
}

// createRAM makes the memory file, sparse, so that it has the right owner, mode and size from the first moment.
func createRAM(cfg vmm.Config) error {
	f, err := os.OpenFile(cfg.Memory, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return spore.Errorf(spore.CodeConflict, "the memory file %s exists already", cfg.Memory).WithCause(err)
	}
	if err != nil {
		return diskError("make the memory file", err)
	}
	err = f.Truncate(ramBytes(cfg))
	if errors.Is(err, syscall.EFBIG) {
		err = spore.Invalidf("memoryMiB", "the file system takes no file of %d MiB", cfg.MemoryMiB).WithCause(err)
	} else if err != nil {
		err = diskError("make the memory file", err)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(cfg.Memory))
	}
	return nil
}

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
	p, err := e.platform(ctx, e.opts.Kernel, e.opts.Initrd)
	if err != nil {
		return nil, err
	}
	s, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	payload, err := readState(from.State, p.info().StateFormat, s)
	if err != nil {
		return nil, err
	}
	m, err := e.start(ctx, p, cfg, true)
	if err != nil {
		return nil, err
	}
	if err := m.thawUp(ctx, payload, from.Patches); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// start brings a QEMU up, its guest not yet running, and returns when it answers. On error nothing is left.
func (e *Engine) start(ctx context.Context, p platform, cfg vmm.Config, thaw bool) (*machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	w, err := newWorkdir(cfg, thaw)
	if err != nil {
		return nil, err
	}
	m := newMachine(e.log, cfg, p.info().StateFormat, s, w)
	m.shared = !thaw
	l := launch{platform: p, cfg: cfg, thaw: thaw, uid: e.uidFor(cfg.ID), files: sockets}
	if err := m.spawn(l); err != nil {
		return nil, errors.Join(err, w.discard())
	}
	err = m.writeRecord()
	if err == nil {
		err = m.qmp.Start(ctx)
	}
	if err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// maxFile is the largest file that QEMU has any business with.
func maxFile(s shape, cfg vmm.Config) int64 {
	size := ramBytes(cfg)
	for _, d := range s.Drives {
		size = max(size, d.Size)
	}
	return max(size, maxStateSize)
}

// spawn starts the process with its sockets made and connected beforehand.
func (m *machine) spawn(l launch) (err error) {
	output, err := vmlog.Pipe(m.work.join(nameOutput))
	if err != nil {
		return diskError("make the VM's log", err)
	}
	defer output.Close()
	var passed []*os.File
	defer func() {
		for _, f := range passed {
			f.Close()
		}
	}()
	for _, name := range l.files {
		f, err := m.work.listen(name)
		if err != nil {
			return err
		}
		passed = append(passed, f)
	}
	if l.cfg.NIC != nil {
		cable, err := openCable(*l.cfg.NIC)
		if err != nil {
			return err
		}
		if cable != nil {
			passed = append(passed, cable)
		}
	}
	drives, files, err := openDrives(m.cfg, m.shape, 3+len(passed))
	passed = append(passed, files...)
	if err != nil {
		return err
	}
	l.drives = drives
	if err := m.connect(); err != nil {
		return err
	}
	p, err := startProcess(l.platform.path, m.work.path, l.args(), output, passed,
		limitsFor(maxFile(m.shape, m.cfg), l.uid >= 0, l.cfg.VCPUs))
	if err != nil {
		return errors.Join(err, m.disconnect())
	}
	m.follow(p)
	return nil
}

// bootUp lets the guest run, once its console is being read.
func (m *machine) bootUp(ctx context.Context) error {
	for {
		var devices []struct{ Label, Filename string }
		if err := m.qmp.Do(ctx, "query-chardev", nil, &devices); err != nil {
			return err
		}
		waiting := false
		for _, d := range devices {
			if d.Label == socketConsole && strings.HasPrefix(d.Filename, "disconnected:") {
				waiting = true
			}
		}
		if !waiting {
			break
		}
	}
	return m.Resume(ctx)
}

// thawUp fills the memory, then loads the state: devices check their queues in guest RAM as they load.
func (m *machine) thawUp(ctx context.Context, payload []byte, patches vmm.Patches) error {
	events := map[string]any{"capabilities": []map[string]any{{"capability": "events", "state": true}}}
	call, err := m.qmp.Send("migrate-set-capabilities", events, nil)
	if err != nil {
		return err
	}
	if patches != nil {
		mem, err := m.openMemory()
		if err != nil {
			return err
		}
		w := mem.NewWriter()
		if err := patches.Each(ctx, w.Add); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if err := call.Wait(ctx, nil); err != nil {
		return err
	}
	return m.loadState(ctx, payload)
}

// abandon ends a VM that did not come up, removes what it left and returns why it did not.
func (m *machine) abandon(err error) error {
	err = m.settle(err)
	select {
	case <-m.proc.done:
		<-m.gone
		// It ended by itself, and that is the reason for whatever failed on this side.
		if code := spore.CodeOf(err); code == spore.CodeInternal || code == spore.CodeConflict {
			err = m.refusal().WithCause(err)
		}
	default:
	}
	killErr := m.Kill(context.Background())
	if killErr != nil {
		return errors.Join(err, killErr)
	}
	return errors.Join(err, m.closeMemory(), m.work.discard())
}

// refusal is why QEMU ended in its start, as it said itself.
func (m *machine) refusal() *spore.Error {
	words := m.lastWords()
	output, err := vmlog.Tail(m.work.join(nameLog), 4096)
	if err != nil {
		m.log.Warn("read the hypervisor's log", "vm", m.cfg.ID, "error", err)
	}
	if e := lockRefusal(string(output), m.cfg.Drives); e != nil {
		return e
	}
	if strings.Contains(words, "Cannot allocate memory") {
		return spore.Errorf(spore.CodeNoSpace, "this host has no %d MiB of memory for the VM: %s", m.cfg.MemoryMiB, words)
	}
	return spore.Errorf(spore.CodeUnsupported, "QEMU did not start the VM: %s", words)
}

func (m *machine) closeMemory() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.memory == nil {
		return nil
	}
	mem := m.memory
	m.memory = nil
	return mem.Close()
}
