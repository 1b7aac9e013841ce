package qemu

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Version of QEMU.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast says whether v is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

var versionForm = regexp.MustCompile(`^QEMU emulator version ([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})`)

// ParseVersion reads what qemu-system-x86_64 --version prints.
func ParseVersion(out []byte) (Version, error) {
	m := versionForm.FindSubmatch(out)
	if m == nil {
		first, _, _ := bytes.Cut(out, []byte("\n"))
		return Version{}, fmt.Errorf("qemu: no version in %.100q", first)
	}
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(string(m[i+1])); err != nil {
			return Version{}, fmt.Errorf("qemu: version: %w", err)
		}
	}
	return Version{n[0], n[1], n[2]}, nil
}

// processor is the host's, as far as it matters to a guest that sees it.
type processor struct {
	name     string // model and features, for people
	features string // vendor and features alone
}

func hostCPU() (processor, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return processor{}, fmt.Errorf("qemu: %w", err)
	}
	return parseCPU(string(text)), nil
}

// parseCPU reads the first processor of /proc/cpuinfo.
func parseCPU(text string) processor {
	vendor, model, flags := "unknown", "unknown", ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "" {
			break
		}
		switch key {
		case "vendor_id":
			vendor = value
		case "model name":
			model = value
		case "flags":
			flags = value
		}
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(strings.Fields(flags))))
	return processor{
		name:     fmt.Sprintf("%s (features %s)", model, digestOf(flags)),
		features: vendor + "/" + digestOf(strings.Join(sorted, " ")),
	}
}
