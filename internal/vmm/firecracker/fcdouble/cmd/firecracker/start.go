package main

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

func (m *machine) action(kind string) reply {
	switch kind {
	case "InstanceStart":
		if m.started() {
			return reply{fault: onlyBefore}
		}
		if err := m.start(); err != nil {
			return faulted("Start microvm error: %s", err)
		}
		return reply{}
	case "FlushMetrics", "SendCtrlAltDel":
		if !m.started() {
			return reply{fault: onlyAfter}
		}
	}
	return reply{} // no guest of ours has a keyboard
}

func (m *machine) setState(want string) reply {
	if !m.started() {
		return reply{fault: onlyAfter}
	}
	if want == "Paused" {
		m.change(paused)
		m.guest.settle()
	} else {
		m.change(running)
	}
	return reply{}
}

// kernelAt is where in memory kernels are put.
const kernelAt = 1 << 20

// start boots the VM.
func (m *machine) start() error {
	if m.kernel == nil {
		return say("Cannot start microvm without kernel configuration.")
	}
	if err := openKVM(); err != nil {
		return err
	}
	mem, err := anonymous(m.rel, m.cfg.MemoryMiB<<20, m.cfg.TrackDirty)
	if err != nil {
		return say("Invalid Memory Configuration: Cannot create mmap region: %s", rust.Message(err))
	}
	native, err := m.loadKernel(mem)
	if err != nil {
		prefix := "System configuration error: "
		if !m.rel.since(12) {
			prefix = ""
		}
		return say("%sCannot load kernel due to invalid memory configuration or invalid kernel image: %w", prefix, err)
	}
	if m.initrd != nil {
		if err := loadInitrd(mem, m.initrd); err != nil {
			return say("Error with initrd initialization: %w.", err)
		}
	}
	m.mem = mem
	if err := m.begin(nil); err != nil {
		return err
	}
	m.guest.boot(native)
	m.change(running)
	return nil
}

// begin makes the guest and lets the host reach it.
func (m *machine) begin(registers []byte) error {
	serial := os.Stdout
	if m.serial != nil {
		f, err := os.OpenFile(*m.serial, os.O_WRONLY|os.O_CREATE, 0o666)
		if err != nil {
			return say("Error creating legacy device: %s", rust.Message(err))
		}
		serial = f
	}
	m.guest = newGuest(m, serial, registers)
	if m.vsock != nil {
		m.vsock.serve(m)
	}
	return nil
}

// openKVM fails where this process may not open the device. A host without KVM does for us.
func openKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) {
		return say("Kvm error: Error creating KVM object: %s Make sure the user launching the firecracker process is configured on the /dev/kvm file's ACL.", rust.Message(err))
	}
	if err != nil {
		return nil
	}
	return f.Close()
}

// loadKernel puts the kernel in memory; native says whether this machine's processor could run it.
func (m *machine) loadKernel(mem *memory) (native bool, err error) {
	size, err := m.kernel.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	image := make([]byte, size)
	if _, err := m.kernel.ReadAt(image, 0); err != nil && err != io.EOF {
		return false, say("Kernel Loader: failed to load ELF kernel image: Kernel Loader: Unable to read ELF header: %w", err)
	}
	native = true
	switch {
	case len(image) < 64:
		return false, say("Kernel Loader: failed to load ELF kernel image: Kernel Loader: Unable to read elf header")
	case string(image[:4]) == elf.ELFMAG:
		native = elf.Machine(binary.LittleEndian.Uint16(image[18:])) == elf.EM_X86_64
	case !m.rel.since(17):
		return false, say("Kernel Loader: failed to load ELF kernel image: Kernel Loader: Invalid Elf magic number")
	case len(image) < 0x206 || string(image[0x202:0x206]) != "HdrS":
		return false, say("Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage")
	}
	if size > mem.size-kernelAt {
		return false, say("Kernel Loader: failed to load ELF kernel image: Kernel Loader: Memory to load kernel image is not enough")
	}
	_, err = mem.WriteAt(image, kernelAt)
	return native, err
}

func loadInitrd(mem *memory, f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	top := mem.regions[0].offset + int64(len(mem.regions[0].bytes))
	at := (top - size) / pageSize * pageSize
	if size == 0 {
		return say("Failed to compute the initrd address")
	}
	if at < kernelAt {
		return say("Failed to load the initrd: No room for the initrd in memory")
	}
	image := make([]byte, size)
	if _, err := f.ReadAt(image, 0); err != nil && err != io.EOF {
		return err
	}
	_, err = mem.WriteAt(image, at)
	return err
}

// argument is the value of a kernel parameter, the last one counts.
func (b bootSource) argument(name string) (value string, found bool) {
	if b.Args == nil {
		return "", false
	}
	for word := range strings.FieldsSeq(*b.Args) {
		if v, ok := strings.CutPrefix(word, name+"="); ok {
			value, found = v, true
		}
	}
	return value, found
}
