package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/api"
)

// Scope is what the figures hold for. It names no host.
type Scope struct {
	Kernel        string  `json:"kernel"`
	Arch          string  `json:"arch"`
	Cores         int     `json:"cores"`
	CPU           string  `json:"cpu"`
	MemoryMiB     int     `json:"memoryMiB"`
	Filesystem    string  `json:"filesystem"` // of the data directory
	Engine        string  `json:"engine"`
	EngineVersion string  `json:"engineVersion"`
	Accel         string  `json:"accel"`
	AccelReason   string  `json:"accelReason,omitempty"`
	LoadBefore    float64 `json:"loadBefore"` // one-minute load average as the run began
	LoadAfter     float64 `json:"loadAfter"`
	PageCache     string  `json:"pageCache"`
	Image         string  `json:"image"`
	Version       string  `json:"version"` // of the server
}

// pageCacheState is how things are when they are measured; see Config.
const pageCacheState = "warm: every base file was read before, as on a host that serves"

// hostScope describes this machine, with dir as the data directory.
func hostScope(dir string) (Scope, error) {
	s := Scope{Arch: runtime.GOARCH, Cores: runtime.NumCPU(), PageCache: pageCacheState}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return s, err
	}
	// What stands behind the first dash of a release is a build's name, which may name the host's provider.
	s.Kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return s, err
	}
	s.Filesystem = filesystemName(uint32(fs.Type))
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return s, err
	}
	s.MemoryMiB = int(uint64(info.Totalram) * uint64(info.Unit) >> 20)
	s.CPU = field("/proc/cpuinfo", "model name")
	var err error
	s.LoadBefore, err = loadAverage()
	return s, err
}

func (s *Scope) server(info *api.Info, image string) {
	s.Engine, s.EngineVersion, s.Accel, s.AccelReason = info.Engine, info.EngineVersion, info.Accel, info.AccelReason
	s.Version, s.Image = info.Version, image
}

// Class names hosts like this one: what matters most for the figures, and nothing that tells whose it is.
func (s Scope) Class() string {
	return fmt.Sprintf("%s-%dc-%s-%s", s.Arch, s.Cores, s.Accel, s.Filesystem)
}

func (s Scope) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Scope: %s %s under %s", s.Engine, s.EngineVersion, s.Accel)
	if s.AccelReason != "" {
		fmt.Fprintf(&b, " (%s)", s.AccelReason)
	}
	fmt.Fprintf(&b, ", Linux %s on %d cores (%s, %s), %d MiB of memory, data on %s, load %.2f before and %.2f after.\n",
		s.Kernel, s.Cores, s.CPU, s.Arch, s.MemoryMiB, s.Filesystem, s.LoadBefore, s.LoadAfter)
	fmt.Fprintf(&b, "Page cache %s. Image: %s. The figures say nothing of other hosts; the ratios say more than the times.\n", s.PageCache, s.Image)
	return b.String()
}

func filesystemName(magic uint32) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	}
	return fmt.Sprintf("fs%x", magic)
}

// field reads the first value of a "name : value" line; "" when there is none.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func loadAverage() (float64, error) {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	var load float64
	_, err = fmt.Sscan(string(raw), &load)
	return load, err
}
