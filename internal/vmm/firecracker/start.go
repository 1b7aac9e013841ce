package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/foreign"
	"github.com/sporevm/spore/internal/vmm/vmlinux"
)

const guestCID = 3 // of every VM: they share nothing, and a snapshot keeps it

// Boot starts a VM from its kernel; see vmm.Engine.
func (e *Engine) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := check(cfg, true); err != nil {
		return nil, err
	}
	if len(bootArgs(cfg)) > maxBootArgs {
		return nil, spore.Invalidf("cmdline", "the kernel command line is of %d bytes; %d fit", len(bootArgs(cfg)), maxBootArgs)
	}
	p, err := e.platform(ctx)
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
	kernel, err := vmlinux.Open(cfg.Kernel)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	if err := createRAM(cfg); err != nil {
		return nil, err
	}
	m, err := e.prepare(ctx, p, p.newest(), cfg)
	if err == nil {
		m.booted = true
		if err = m.bootUp(ctx, kernel); err == nil {
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

// prepare brings up a Firecracker for cfg, with its files in place and nothing loaded. On error nothing is left.
func (e *Engine) prepare(ctx context.Context, p platform, b *Binary, cfg vmm.Config) (*machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := shapeOf(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.NIC != nil && cfg.NIC.Tap != "" {
		if err := checkTap(*cfg.NIC); err != nil {
			return nil, err
		}
	}
	work, err := workPath(cfg.Dir)
	if err != nil {
		return nil, err
	}
	j, err := e.pool.take(b, work, cfg.NIC, largestFile(s))
	if err != nil {
		return nil, err
	}
	if j == nil {
		if err := newWork(work); err != nil {
			return nil, err
		}
		if j, err = e.launch(ctx, b, work, cfg.NIC, largestFile(s)); err != nil {
			return nil, errors.Join(err, os.RemoveAll(work))
		}
	}
	m := newMachine(e, cfg, stateFormat(b.Snapshot, p.cpu), s, j)
	m.follow()
	if err := m.furnish(); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// furnish puts the VM's files into its root.
func (m *machine) furnish() error {
	if err := m.writeRecord(); err != nil {
		return err
	}
	var files []exposure
	for _, d := range m.cfg.Drives {
		x := exposure{name: driveName(d.ID), path: d.Path, readOnly: d.ReadOnly, foreign: d.Foreign}
		if d.Foreign {
			f, _, err := foreign.Open(d.Path, d.ReadOnly)
			if err != nil {
				return err
			}
			m.mu.Lock()
			m.claims = append(m.claims, f)
			m.mu.Unlock()
			// By way of the descriptor: it is the same file, whatever the path leads to by now.
			x.path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
			if !m.jail.jailed {
				x.path = d.Path
			}
		}
		files = append(files, x)
	}
	if err := m.jail.expose(files); err != nil {
		return err
	}
	return m.jail.makeScratch()
}

// largestFile is the size of the largest file that Firecracker has any business with.
func largestFile(s shape) int64 {
	size := max(int64(s.MemoryMiB)<<20, maxStateSize)
	for _, d := range s.Drives {
		size = max(size, d.Size)
	}
	return size
}

// bootUp configures the VM and lets it run.
func (m *machine) bootUp(ctx context.Context, kernel *vmlinux.Kernel) error {
	j, api := m.jail, m.jail.api
	files := []exposure{{name: nameMemory, path: m.cfg.Memory}}
	if m.cfg.Initrd != "" {
		files = append(files, exposure{name: nameInitrd, path: m.cfg.Initrd, readOnly: true})
	}
	if kernel.IsELF() || !kernel.Unpackable() && j.binary.Features.BzImage {
		files = append(files, exposure{name: nameKernel, path: m.cfg.Kernel, readOnly: true})
	} else if err := m.unpackKernel(kernel); err != nil {
		return err
	}
	if err := j.expose(files); err != nil {
		return err
	}
	source := bootSource{KernelImagePath: nameKernel, BootArgs: bootArgs(m.cfg)}
	if m.cfg.Initrd != "" {
		source.InitrdPath = nameInitrd
	}
	if err := api.putMachine(ctx, machineConfiguration{VCPUCount: m.cfg.VCPUs, MemSizeMiB: m.cfg.MemoryMiB, HugePages: m.pages()}); err != nil {
		return m.settle(err)
	}
	if err := api.putBootSource(ctx, source); err != nil {
		return m.settle(err)
	}
	for i, d := range m.cfg.Drives {
		body := drive{DriveID: d.ID, PathOnHost: driveName(d.ID), IsReadOnly: d.ReadOnly}
		if d.Foreign {
			body.CacheType = "Writeback" // a flush reaches the medium
		}
		if d.Limits != (vmm.DriveLimits{}) {
			body.RateLimiter = limiter(d.Limits)
		}
		if err := api.putDrive(ctx, body); err != nil {
			return m.settle(err)
		}
		m.limits[i] = d.Limits
	}
	if nic := m.cfg.NIC; nic != nil {
		tap, err := j.plug(nic)
		if err != nil {
			return err
		}
		if err := api.putNetwork(ctx, networkInterface{IfaceID: ifaceID, GuestMAC: nic.MAC, HostDevName: tap}); err != nil {
			return m.settle(err)
		}
		m.tap = tap
	}
	if err := api.putVsock(ctx, vsock{GuestCID: guestCID, UDSPath: nameVsock}); err != nil {
		return m.settle(err)
	}
	if err := api.putEntropy(ctx); err != nil {
		return m.settle(err)
	}
	if err := api.act(ctx, actionStart); err != nil {
		return m.settle(err)
	}
	m.setRunning(true)
	if err := os.Remove(j.file(nameKernel)); err != nil && !errors.Is(err, syscall.EBUSY) { // busy: it is mounted
		return fmt.Errorf("firecracker: %w", err)
	}
	return m.writeRecord()
}

// pages is the kind of pages that guest memory is on; "" is the host's usual.
func (m *machine) pages() string {
	if m.eng.opts.HugePages && m.jail.binary.Features.LoadHugePages && m.cfg.MemoryMiB%2 == 0 {
		return pagesTransparent
	}
	return ""
}

// unpackKernel writes the ELF file that a bzImage holds into the root.
func (m *machine) unpackKernel(kernel *vmlinux.Kernel) error {
	f, err := os.OpenFile(m.jail.file(nameKernel), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError("unpack the kernel", err)
	}
	if m.jail.uid >= 0 {
		err = f.Chown(m.jail.uid, m.jail.uid)
	}
	if err == nil {
		err = kernel.Extract(f)
	}
	return errors.Join(err, f.Close())
}

// abandon ends a VM that did not come up, removes what it left and returns why it did not.
func (m *machine) abandon(err error) error {
	err = m.settle(err)
	if m.jail.proc.ended() {
		<-m.gone
		// It ended by itself, and that is the reason for whatever failed on this side.
		if code := spore.CodeOf(err); code == spore.CodeInternal || code == spore.CodeConflict {
			err = m.refusal().WithCause(err)
		}
	}
	if killErr := m.Kill(context.Background()); killErr != nil {
		return errors.Join(err, killErr)
	}
	errs := []error{err, m.endPager()} // it may have come after the process had ended
	m.mu.Lock()
	for _, f := range m.claims { // as may these
		errs = append(errs, f.Close())
	}
	m.claims = nil
	m.mu.Unlock()
	return errors.Join(append(errs, os.RemoveAll(m.jail.work))...)
}

// refusal is why Firecracker ended in its start, as it said itself.
func (m *machine) refusal() *spore.Error {
	return spore.Errorf(spore.CodeUnsupported, "Firecracker did not start the VM: %s", m.jail.lastWords())
}

// fileSize works for block devices too.
func fileSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("firecracker: %w", err)
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}
