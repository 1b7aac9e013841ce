package spore

import (
	"math"
	"path/filepath"
)

// Limits bound what a sandbox takes of the machine, beyond its size. Zero means no bound. All may change while it runs.
type Limits struct {
	CPUs           float64 `json:"cpus,omitempty"`           // processors' worth of time; 0.5 is half of one
	DiskMBps       int     `json:"diskMBps,omitempty"`       // of each drive, read and written together; 10^6 bytes a second
	DiskIOPS       int     `json:"diskIOPS,omitempty"`       // of each drive, reads and writes together
	NetworkInMbps  int     `json:"networkInMbps,omitempty"`  // to the guest; 10^6 bits a second
	NetworkOutMbps int     `json:"networkOutMbps,omitempty"` // from the guest
}

// Bounds of Limits. Less than the least would stop a guest rather than slow it.
const (
	MinCPUs     = 0.01
	MaxDiskMBps = 100_000
	MaxDiskIOPS = 10_000_000
	MaxMbps     = 400_000
)

// Validate refuses limits that are negative or absurd.
func (l Limits) Validate() error {
	switch {
	case math.IsNaN(l.CPUs) || l.CPUs < 0 || l.CPUs > MaxVCPUs || l.CPUs > 0 && l.CPUs < MinCPUs:
		return Invalidf("limits.cpus", "%v is out of range", l.CPUs).WithHint("%v to %d, or 0 for no limit", MinCPUs, MaxVCPUs)
	case l.DiskMBps < 0 || l.DiskMBps > MaxDiskMBps:
		return Invalidf("limits.diskMBps", "%d is out of range", l.DiskMBps).WithHint("1 to %d, or 0 for no limit", MaxDiskMBps)
	case l.DiskIOPS < 0 || l.DiskIOPS > MaxDiskIOPS:
		return Invalidf("limits.diskIOPS", "%d is out of range", l.DiskIOPS).WithHint("1 to %d, or 0 for no limit", MaxDiskIOPS)
	case l.NetworkInMbps < 0 || l.NetworkInMbps > MaxMbps:
		return Invalidf("limits.networkInMbps", "%d is out of range", l.NetworkInMbps).WithHint("1 to %d, or 0 for no limit", MaxMbps)
	case l.NetworkOutMbps < 0 || l.NetworkOutMbps > MaxMbps:
		return Invalidf("limits.networkOutMbps", "%d is out of range", l.NetworkOutMbps).WithHint("1 to %d, or 0 for no limit", MaxMbps)
	}
	return nil
}

// Disk is a file or block device of the machine that a sandbox gets as a drive. The caller owns it: it is never copied, resized
// or removed, and no snapshot holds its content.
type Disk struct {
	Path     string `json:"path"` // absolute, on the node
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// MaxDisks bounds how many drives of the caller's one sandbox has.
const MaxDisks = 8

// ValidateDisks refuses disks that cannot be. Whether a path is there only the node can tell.
func ValidateDisks(disks []Disk) error {
	if len(disks) > MaxDisks {
		return Invalidf("disks", "%d disks are too many", len(disks)).WithHint("at most %d", MaxDisks)
	}
	seen := map[string]bool{}
	for _, d := range disks {
		if !filepath.IsAbs(d.Path) || filepath.Clean(d.Path) != d.Path {
			return Invalidf("disks.path", "%q is not an absolute, clean path", d.Path)
		}
		if seen[d.Path] {
			return Invalidf("disks.path", "%s is named twice", d.Path)
		}
		seen[d.Path] = true
	}
	return nil
}
