package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/foreign"
	"github.com/sporevm/spore/internal/vmm/qemu/qmp"
)

// A drive is a chain of nodes: the file, its raw format, and a throttle that the device stands on. The throttle is always
// there, since QEMU cannot put one under a device that exists; without limits it passes requests on. Guests and saved states
// know nothing of it.

var _ vmm.Throttler = (*machine)(nil)

// maxLimit is the largest number that QEMU takes for a limit.
const maxLimit = 1_000_000_000_000_000

// foreignSets is where the numbers of the descriptor sets of foreign drives begin, far from those that saving a state uses.
const foreignSets = 1 << 20

func throttleName(id string) string { return "limit-" + id }

// openDrive is what a drive turned out to be.
type openDrive struct {
	fd     int  // of a foreign one, in QEMU's process
	device bool // a block device
}

// driveArgs is the part of the command line about one drive.
func driveArgs(i int, d vmm.Drive, o openDrive) []string {
	var a []string
	name := driveName(d.ID)
	if d.Foreign {
		name = fmt.Sprintf("/dev/fdset/%d", foreignSets+i)
		a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=%d", o.fd, foreignSets+i))
	}
	driver := "file"
	if o.device {
		driver = "host_device"
	}
	file := "driver=" + driver + ",node-name=file-" + d.ID + ",filename=" + name
	raw := "driver=raw,node-name=raw-" + d.ID + ",file=file-" + d.ID
	throttle := "driver=throttle,node-name=" + d.ID + ",file=raw-" + d.ID + ",throttle-group=" + throttleName(d.ID)
	switch {
	case d.Foreign:
		// A flush reaches the medium, nothing is given back to the file system that the guest did not write as zeroes, and
		// whoever else uses the file through QEMU is kept out: the defaults, said aloud.
		file += ",locking=on,discard=ignore,cache.no-flush=off"
		raw += ",discard=ignore,detect-zeroes=off,cache.no-flush=off"
		throttle += ",discard=ignore,cache.no-flush=off"
	case d.ReadOnly:
		// Shared by many VMs, and no lock is needed on what nobody writes.
		file += ",locking=off"
	default:
		// A drive lives no longer than the host stays up, so a guest's flush need not reach the medium: what it wrote
		// is in the file for every reader on this host, and a pause does not wait for a slow disk.
		file += ",discard=unmap,cache.no-flush=on"
		raw += ",discard=unmap,detect-zeroes=unmap,cache.no-flush=on"
		throttle += ",discard=unmap,cache.no-flush=on"
	}
	if d.ReadOnly {
		file, raw, throttle = file+",read-only=on", raw+",read-only=on", throttle+",read-only=on"
	}
	return append(a,
		"-object", throttleGroup(d),
		"-blockdev", file, "-blockdev", raw, "-blockdev", throttle,
		"-device", fmt.Sprintf("virtio-blk-pci,id=drive-%s,drive=%s,serial=%s,bus=pcie.0,addr=%d,disable-legacy=on,num-queues=1",
			d.ID, d.ID, d.ID, slotFirstDrive+i),
	)
}

// throttleLimits is QEMU's word for vmm.DriveLimits. A guest that was idle may spend a tenth of a second's worth at once.
type throttleLimits struct {
	Bytes int64 `json:"bps-total"`
	Ops   int64 `json:"iops-total"`
}

func throttleGroup(d vmm.Drive) string {
	text, err := json.Marshal(struct {
		Type   string         `json:"qom-type"`
		ID     string         `json:"id"`
		Limits throttleLimits `json:"limits"`
	}{"throttle-group", throttleName(d.ID), throttleLimits{d.Limits.BytesPerSecond, d.Limits.OpsPerSecond}})
	if err != nil {
		panic(err) // of strings and numbers
	}
	return string(text)
}

func checkLimits(l vmm.DriveLimits) error {
	for what, n := range map[string]int64{"bytes": l.BytesPerSecond, "operations": l.OpsPerSecond} {
		if n < 0 || n > maxLimit {
			return spore.Invalidf("limits", "%d %s a second is not a limit from 0 to %d", n, what, int64(maxLimit))
		}
	}
	return nil
}

// LimitDrive changes the limits of a drive; see vmm.Throttler. A request that waits already waits as long as the limits before
// demanded.
func (m *machine) LimitDrive(ctx context.Context, id string, l vmm.DriveLimits) error {
	if err := checkLimits(l); err != nil {
		return err
	}
	known := false
	for _, d := range m.cfg.Drives {
		known = known || d.ID == id
	}
	if !known {
		return spore.Errorf(spore.CodeNotFound, "the VM %s has no drive %q", m.cfg.ID, id)
	}
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = m.qmp.Do(ctx, "qom-set", map[string]any{
		"path": "/objects/" + throttleName(id), "property": "limits", "value": throttleLimits{l.BytesPerSecond, l.OpsPerSecond},
	}, nil)
	var refusal *qmp.Error
	if errors.As(err, &refusal) && refusal.Class == "DeviceNotFound" {
		return spore.Errorf(spore.CodeUnsupported, "the drives of the VM %s cannot be limited", m.cfg.ID).
			WithHint("it was started by an earlier version of Spore; start it anew").WithCause(err)
	}
	return m.settle(err)
}

// openDrives looks at the drives, and opens those that belong to the caller. The checks are made on what was opened, and that is
// what QEMU gets, as the descriptors from first on: a path that changes in between leads nowhere else. The caller closes the files,
// on error too.
func openDrives(cfg vmm.Config, s shape, first int) (drives map[string]openDrive, files []*os.File, err error) {
	drives = map[string]openDrive{}
	for i, d := range cfg.Drives {
		if !d.Foreign {
			fi, err := os.Stat(d.Path)
			if err != nil {
				return nil, files, fmt.Errorf("qemu: %w", err)
			}
			drives[d.ID] = openDrive{device: !fi.Mode().IsRegular()}
			continue
		}
		f, size, err := foreign.Open(d.Path, d.ReadOnly)
		if err != nil {
			return nil, files, err
		}
		files = append(files, f)
		if size != s.Drives[i].Size {
			return nil, files, spore.Errorf(spore.CodeConflict, "the size of %s changed while the VM was started", d.Path)
		}
		fi, err := f.Stat()
		if err != nil {
			return nil, files, fmt.Errorf("qemu: %w", err)
		}
		drives[d.ID] = openDrive{fd: first + len(files) - 1, device: !fi.Mode().IsRegular()}
	}
	return drives, files, nil
}

// lockForm finds, in what QEMU says, the drive that another process holds. Locks are taken as a node is made, as the device is
// put on it, or, with no word of which drive, as the guest is set going.
var (
	lockForm = regexp.MustCompile(`Failed to get (?:shared )?"[a-z ]+" lock`)
	nodeForm = regexp.MustCompile(`(?:node-name=|drive=|Could not open |node ')(?:file-|raw-)?([a-z][a-z0-9]{0,19})\b`)
)

// lockRefusal turns QEMU's words about an image lock into an error; nil when they are about something else.
func lockRefusal(words string, drives []vmm.Drive) *spore.Error {
	if !lockForm.MatchString(words) {
		return nil
	}
	named := map[string]bool{}
	for _, m := range nodeForm.FindAllStringSubmatch(words, -1) {
		named[m[1]] = true
	}
	var suspects []vmm.Drive
	for _, d := range drives {
		locked := d.Foreign || !d.ReadOnly
		if named[d.ID] {
			suspects = []vmm.Drive{d}
			break
		}
		if locked {
			suspects = append(suspects, d)
		}
	}
	path, field := "a drive of the VM", "drives"
	if len(suspects) == 1 {
		path = suspects[0].Path
	}
	for _, d := range suspects {
		if d.Foreign { // nobody else has to do with the VM's own
			field = foreign.Field
		}
	}
	e := spore.Errorf(spore.CodeInUse, "%s is in use by another VM or process", path).WithHint("a disk that is written belongs to one sandbox at a time")
	e.Field = field
	return e
}
