//go:build lab

package lab

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker"
)

// firecracker is a real Firecracker that somebody named.
type realFirecracker struct {
	name            string // of its steps, and of its directory in the cargo
	program, jailer string
}

// firecrackers are the binaries that SPORE_FIRECRACKER names, separated by commas, each with the jailer beside it or the one that
// SPORE_JAILER names in the same place of its list, and those in the directories of the directory SPORE_FIRECRACKER_DIR.
func firecrackers(t *testing.T) []realFirecracker {
	t.Helper()
	var all []realFirecracker
	add := func(program, jailer string) {
		jailer = cmp.Or(jailer, filepath.Join(filepath.Dir(program), "jailer"))
		found, err := firecracker.New(firecracker.Options{Binaries: []string{program}, Jailer: jailer})
		if err != nil {
			t.Fatal(err)
		}
		installed, err := found.Installed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		name := "firecracker-" + installed[0].Version.String()
		for _, other := range all {
			if other.name == name {
				return
			}
		}
		all = append(all, realFirecracker{name, program, jailer})
	}
	jailers := strings.Split(os.Getenv("SPORE_JAILER"), ",")
	for i, program := range strings.Split(os.Getenv("SPORE_FIRECRACKER"), ",") {
		if program == "" {
			continue
		}
		jailer := ""
		if i < len(jailers) {
			jailer = jailers[i]
		}
		add(program, jailer)
	}
	if dir := os.Getenv("SPORE_FIRECRACKER_DIR"); dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			program := filepath.Join(dir, e.Name(), "firecracker")
			if _, err := os.Stat(program); err == nil {
				add(program, "")
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	if len(all) == 0 {
		t.Log("no Firecracker is named by SPORE_FIRECRACKER or SPORE_FIRECRACKER_DIR: the lab is QEMU's alone")
	}
	return all
}

// put brings the binaries to where the scripts look for those of a step, by its name: in a directory as --firecracker-dir takes it.
func (f realFirecracker) put(t *testing.T, c cargo) {
	t.Helper()
	c.put(t, f.program, filepath.Join("vmms", f.name, f.name, "firecracker"))
	c.put(t, f.jailer, filepath.Join("vmms", f.name, f.name, "jailer"))
}

func loadFirecracker(t *testing.T, c cargo, f realFirecracker) {
	t.Helper()
	f.put(t, c)
	loadSuite(t, c, "firecracker")
}
