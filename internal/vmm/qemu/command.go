package qemu

import (
	"fmt"
	"strconv"

	"github.com/sporevm/spore/internal/vmm"
)

// machineType is the oldest machine that every supported QEMU still has; a name without a version would change what
// guests see from one QEMU to the next.
const machineType = "pc-q35-7.2"

// tcgCPU is the processor that emulated guests see: a model that no QEMU release alters, with what x86-64-v2 programs
// expect and with a random number generator for early boot.
const tcgCPU = "qemu64-v1,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq,+rdrand,+smep,+smap,-svm"

// translationMiB bounds the cache of translated guest code, per VM. QEMU's own choice is a gigabyte.
const translationMiB = 128

// Slots on the PCI bus. They are part of the shape that device state fits.
const (
	slotSerial     = 2
	slotNIC        = 3
	slotFirstDrive = 8
	maxDrives      = 16
)

// launch is what a command line is made of.
type launch struct {
	platform platform
	cfg      vmm.Config
	thaw     bool
	uid      int                  // -1: stay
	files    []string             // names of the listening sockets that follow stdin, stdout and stderr, in order; then comes the NIC's cable
	drives   map[string]openDrive // by id
}

// args is QEMU's command line. Every file has a fixed name in the working directory; see workdir.
func (l launch) args() []string {
	cfg, v := l.cfg, l.platform.version
	size := strconv.Itoa(cfg.MemoryMiB) + "M"
	a := []string{
		"-name", "guest=" + cfg.ID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		// What the guest has no use for is left out: it costs boot time, start time and attack surface.
		"-machine", machineType + ",suppress-vmdesc=on,memory-backend=ram,usb=off,vmport=off,sata=off,smbus=off,hpet=off,dump-guest-core=off",
		"-cpu", l.platform.cpu,
		"-smp", strconv.Itoa(cfg.VCPUs),
		"-m", size,
		// The configuration section holds the machine's name and nothing that the format of the state does not already.
		"-global", "migration.send-configuration=off",
	}
	if l.platform.accel == AccelKVM {
		a = append(a, "-accel", "kvm")
	} else {
		a = append(a, "-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationMiB))
	}
	ram := "memory-backend-file,id=ram,size=" + size + ",mem-path=" + nameMemory
	switch {
	case !l.thaw:
		ram += ",share=on"
	case v.AtLeast(8, 2):
		ram += ",share=off,readonly=on,rom=off"
	default:
		// Older versions can map the file copy-on-write but insist on opening it for writing. They never write to it;
		// the digest that package frozen keeps would tell.
		ram += ",share=off"
	}
	a = append(a, "-object", ram)
	a = append(a, l.sandbox()...)
	if l.thaw {
		// No kernel: the guest is past it, and QEMU would hold a copy of it in memory.
		a = append(a, "-incoming", "defer")
	} else {
		a = append(a, "-kernel", nameKernel, "-append", l.cmdline())
		if cfg.Initrd != "" {
			a = append(a, "-initrd", nameInitrd)
		}
	}
	for i, name := range l.files {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", name, 3+i))
	}
	a = append(a,
		"-mon", "chardev="+socketMonitor+",mode=control",
		"-serial", "chardev:"+socketConsole,
		"-device", fmt.Sprintf("virtio-serial-pci,id=ports,bus=pcie.0,addr=%d,max_ports=4,disable-legacy=on", slotSerial),
		"-device", "virtserialport,bus=ports.0,nr=1,chardev="+socketControl+",name="+vmm.PortControl,
		"-device", "virtserialport,bus=ports.0,nr=2,chardev="+socketData+",name="+vmm.PortData,
	)
	if cfg.NIC != nil {
		a = append(a, nicArgs(*cfg.NIC, 3+len(l.files))...)
	}
	for i, d := range cfg.Drives {
		a = append(a, driveArgs(i, d, l.drives[d.ID])...)
	}
	return a
}

func (l launch) cmdline() string {
	line := "console=ttyS0 panic=-1 reboot=t"
	if l.platform.accel == AccelTCG {
		// Emulated processors do not speculate, so there is nothing to mitigate. On a busy host their timer can be so late that
		// the kernel takes its interrupt for broken and panics as it boots; under KVM it knows not to look.
		line += " mitigations=off no_timer_check"
	}
	if l.cfg.Cmdline != "" {
		line += " " + l.cfg.Cmdline
	}
	return line
}

// sandbox drops what QEMU does not need before the guest runs. Denying elevateprivileges would forbid the drop itself;
// after it the process has no capability left and cannot gain one (no_new_privs comes with the filter).
func (l launch) sandbox() []string {
	v := l.platform.version
	elevate := "deny"
	var a []string
	if l.uid >= 0 {
		elevate = "allow"
		user := fmt.Sprintf("%d:%d", l.uid, l.uid)
		switch {
		case v.AtLeast(9, 1):
			a = append(a, "-run-with", "chroot=.,user="+user)
		case v.AtLeast(8, 1):
			a = append(a, "-run-with", "chroot=.", "-runas", user)
		default:
			a = append(a, "-chroot", ".", "-runas", user)
		}
	}
	return append(a, "-sandbox", "on,obsolete=deny,elevateprivileges="+elevate+",spawn=deny,resourcecontrol=deny")
}
