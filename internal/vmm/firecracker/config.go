package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const (
	maxVCPUs     = 32      // of Firecracker
	maxMemoryMiB = 1 << 20 // less than what its address layout has room for
	maxDrives    = 12      // of 17 devices in all
)

var (
	idForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	driveForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)
	tapForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)
)

// check refuses what Firecracker would choke on.
func check(cfg vmm.Config, boot bool) error {
	switch {
	case !idForm.MatchString(cfg.ID):
		return spore.Invalidf("id", "%q cannot name a VM", cfg.ID)
	case cfg.Dir == "":
		return spore.Invalidf("dir", "the VM has no working directory")
	case cfg.VCPUs < 1 || cfg.VCPUs > maxVCPUs:
		return spore.Invalidf("vcpus", "%d is not a number of CPUs from 1 to %d", cfg.VCPUs, maxVCPUs)
	case cfg.MemoryMiB < 16 || cfg.MemoryMiB > maxMemoryMiB:
		return spore.Invalidf("memoryMiB", "%d MiB is not an amount of memory from 16 to %d MiB", cfg.MemoryMiB, maxMemoryMiB)
	case cfg.Memory == "":
		return spore.Invalidf("memory", "the VM has no memory file")
	case len(cfg.Drives) > maxDrives:
		return spore.Invalidf("drives", "%d drives are more than the %d that fit", len(cfg.Drives), maxDrives)
	}
	if cfg.NIC != nil {
		if err := checkNIC(*cfg.NIC); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, d := range cfg.Drives {
		if !driveForm.MatchString(d.ID) || seen[d.ID] {
			return spore.Invalidf("drives", "%q is not a drive name, or is there twice", d.ID)
		}
		seen[d.ID] = true
		if err := checkLimits(d.Limits); err != nil {
			return err
		}
		if err := checkFile("drives", d.Path); err != nil {
			return err
		}
	}
	if !boot {
		return nil
	}
	if err := checkFile("kernel", cfg.Kernel); err != nil {
		return err
	}
	if cfg.Initrd != "" {
		return checkFile("initrd", cfg.Initrd)
	}
	return nil
}

func checkFile(field, path string) error {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return spore.Errorf(spore.CodeNotFound, "%s: there is no file %s", field, path).WithCause(err)
	case err != nil:
		return fmt.Errorf("firecracker: %w", err)
	case !fi.Mode().IsRegular() && (fi.Mode()&fs.ModeDevice == 0 || fi.Mode()&fs.ModeCharDevice != 0):
		return spore.Invalidf(field, "%s is not a file", path)
	}
	return nil
}

func checkNIC(nic vmm.NIC) error {
	mac, err := net.ParseMAC(nic.MAC)
	switch {
	case err != nil || len(mac) != 6 || mac[0]&1 != 0 || len(nic.MAC) != len("00:00:00:00:00:00") || nic.MAC[2] != ':':
		return spore.Invalidf("nic.mac", "%q is not the address of a network device", nic.MAC).WithHint("such as 02:00:00:00:00:01")
	case nic.Tap != "" && nic.Socket != "":
		return spore.Invalidf("nic", "a network device has one cable, not two")
	case nic.Tap != "" && !tapForm.MatchString(nic.Tap):
		return spore.Invalidf("nic.tap", "%q is not the name of a TAP device", nic.Tap)
	case nic.NetNS != "" && nic.Tap == "":
		return spore.Invalidf("nic.netNS", "a network namespace is of no use without a TAP device")
	case nic.Socket != "":
		return spore.Errorf(spore.CodeUnsupported, "Firecracker takes a VM's network traffic from a TAP device only, not from a socket").
			WithHint("give it a TAP device, in a network namespace of its own")
	}
	return nil
}

// ramBytes is the size of the guest's memory.
func ramBytes(cfg vmm.Config) int64 { return int64(cfg.MemoryMiB) << 20 }

// bootArgs is the kernel's command line. Firecracker has no other way to end a VM than a reset by the keyboard
// controller, and shows guests no names of drives, so the agent is told their order.
func bootArgs(cfg vmm.Config) string {
	args := []string{"console=ttyS0", "reboot=k", "panic=-1", "pci=off", "i8042.noaux", "i8042.nomux", "spore.halt=reboot"}
	if len(cfg.Drives) > 0 {
		var names []string
		for _, d := range cfg.Drives {
			names = append(names, d.ID)
		}
		args = append(args, "spore.drives="+strings.Join(names, ","))
	}
	if cfg.Cmdline != "" {
		args = append(args, cfg.Cmdline)
	}
	return strings.Join(args, " ")
}

// maxBootArgs is what fits at the place that Firecracker gives the command line, less what it adds for devices.
const maxBootArgs = 2048 - 512
