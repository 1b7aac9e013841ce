package qemu

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/foreign"
)

const (
	maxVCPUs     = 255               // of the machine type
	maxMemoryMiB = 1 << 20 * 15 / 16 // emulated processors address 40 bits, less room for devices
)

var (
	idForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	driveForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)
)

// check refuses what QEMU would choke on, or worse, understand as an option of its own.
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
	seen := map[string]bool{}
	for _, d := range cfg.Drives {
		if !driveForm.MatchString(d.ID) || seen[d.ID] {
			return spore.Invalidf("drives", "%q is not a drive name, or is there twice", d.ID)
		}
		seen[d.ID] = true
		if err := checkLimits(d.Limits); err != nil {
			return err
		}
		if d.Foreign {
			if _, err := foreign.Size(d.Path); err != nil {
				return err
			}
		} else if err := checkFile("drives", d.Path); err != nil {
			return err
		}
	}
	if cfg.NIC != nil {
		if err := checkNIC(*cfg.NIC); err != nil {
			return err
		}
	}
	if !boot {
		return nil
	}
	if err := checkKernel(cfg.Kernel); err != nil {
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
		return err
	case !fi.Mode().IsRegular() && fi.Mode()&fs.ModeDevice == 0:
		return spore.Invalidf(field, "%s is not a file", path)
	}
	return nil
}

// checkKernel looks for the boot protocol's mark: QEMU's own complaint about a file without it says nothing.
func checkKernel(path string) error {
	if err := checkFile("kernel", path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [0x206]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[0x202:]) != "HdrS" {
		return spore.Invalidf("kernel", "%s is not a Linux kernel (bzImage)", path)
	}
	return nil
}

// ramBytes is the size of the guest's memory.
func ramBytes(cfg vmm.Config) int64 { return int64(cfg.MemoryMiB) << 20 }
