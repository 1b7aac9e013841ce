package firecracker

import (
	"fmt"
	"hash/fnv"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Version of a Firecracker binary or, without meaning for Features, of its snapshot format.
type Version struct{ Major, Minor, Patch int }

var versionForm = regexp.MustCompile(`v([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(?:[-+ \n]|$)`)

// ParseVersion finds the version in what "firecracker --version" or "--snapshot-version" prints.
func ParseVersion(text []byte) (Version, error) {
	m := versionForm.FindSubmatch(text)
	if m == nil {
		return Version{}, fmt.Errorf("firecracker: no version in %q", printable(text, 80))
	}
	var v Version
	for i, to := range []*int{&v.Major, &v.Minor, &v.Patch} {
		n, err := strconv.Atoi(string(m[i+1]))
		if err != nil {
			return Version{}, fmt.Errorf("firecracker: version: %w", err)
		}
		*to = n
	}
	return v, nil
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// AtLeast says whether v is not before major.minor.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) compare(w Version) int {
	return slices.Compare([]int{v.Major, v.Minor, v.Patch}, []int{w.Major, w.Minor, w.Patch})
}

// misplaces says whether a diff snapshot of memory of a size may have pages at the wrong places. The first releases of 1.14
// write what is behind the hole for devices right after the last page that was written before it.
func (v Version) misplaces(size int64) bool {
	return v.Major == 1 && v.Minor == 14 && v.Patch < 2 && size > 3<<30
}

// reads says whether a binary whose snapshot format is v takes a snapshot of format w: the same rule that Firecracker
// applies itself.
func (v Version) reads(w Version) bool { return v.Major == w.Major && v.Minor >= w.Minor }

// oldest is the first version that works, and newest the last that was tried.
var oldest, newest = Version{1, 10, 0}, Version{1, 17, 0}

// Features are what a version of Firecracker can do beyond the oldest that works.
type Features struct {
	NetworkOverrides bool // a snapshot can be loaded with another TAP device
	TrackDirtyPages  bool // that is how the tracking of writes is asked for when loading
	UntrackedDiff    bool // diff snapshots without tracking
	Serial           bool // the serial console can go elsewhere than to standard output
	VsockOverride    bool // a snapshot can be loaded with another vsock socket
	ClockRealtime    bool // the guest's clock can be moved on when loading
	BzImage          bool // boots a bzImage
	LoadHugePages    bool // the page size can be chosen when loading
}

// featureTable says which version brought what.
var featureTable = []struct {
	name         string
	major, minor int
	set          func(*Features)
}{
	{"network_overrides", 1, 12, func(f *Features) { f.NetworkOverrides = true }},
	{"track_dirty_pages on load", 1, 13, func(f *Features) { f.TrackDirtyPages = true }},
	{"diff snapshots without tracking", 1, 13, func(f *Features) { f.UntrackedDiff = true }},
	{"serial output to a file", 1, 14, func(f *Features) { f.Serial = true }},
	{"vsock_override", 1, 16, func(f *Features) { f.VsockOverride = true }},
	{"clock_realtime", 1, 16, func(f *Features) { f.ClockRealtime = true }},
	{"bzImage kernels", 1, 17, func(f *Features) { f.BzImage = true }},
	{"huge_pages on load", 1, 17, func(f *Features) { f.LoadHugePages = true }},
}

// FeaturesOf is what a version can do.
func FeaturesOf(v Version) Features {
	var f Features
	for _, row := range featureTable {
		if v.AtLeast(row.major, row.minor) {
			row.set(&f)
		}
	}
	return f
}

// Missing names what v lacks of what later versions have, each with the version that brought it.
func Missing(v Version) []string {
	var names []string
	for _, row := range featureTable {
		if !v.AtLeast(row.major, row.minor) {
			names = append(names, fmt.Sprintf("%s (since %d.%d)", row.name, row.major, row.minor))
		}
	}
	return names
}

// stateFormat names what device state depends on: Firecracker's own format and the processor, whose features guests see.
func stateFormat(snapshot Version, cpu processor) string {
	return "firecracker-" + snapshot.String() + "/" + digestOf(cpu.features)
}

// parseStateFormat reads what stateFormat wrote.
func parseStateFormat(text string) (snapshot Version, cpu string, ok bool) {
	rest, ok := strings.CutPrefix(text, "firecracker-")
	number, cpu, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 || strings.TrimLeft(number, "0123456789.") != "" {
		return Version{}, "", false
	}
	v, err := ParseVersion([]byte("v" + number))
	return v, cpu, err == nil && v.String() == number
}

// processor is the host's, for people and as a set of features.
type processor struct{ name, features string }

func hostCPU() (processor, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return processor{}, fmt.Errorf("firecracker: %w", err)
	}
	return parseCPU(string(text)), nil
}

// parseCPU reads the first processor of /proc/cpuinfo.
func parseCPU(text string) processor {
	vendor, model, flags := "unknown", "unknown", ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch key {
		case "vendor_id":
			vendor = value
		case "model name":
			model = value
		case "flags":
			flags = value
		}
		if key == "" {
			break
		}
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(strings.Fields(flags))))
	return processor{
		name:     "host: " + model,
		features: vendor + "/" + digestOf(strings.Join(sorted, " ")),
	}
}

func digestOf(text string) string {
	h := fnv.New64a()
	h.Write([]byte(text))
	return fmt.Sprintf("%016x", h.Sum64())
}
