package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/sporevm/spore"
)

// required are the modules without which no guest comes up; those built into the kernel are skipped. The order is the
// order of loading as far as dependencies allow.
var required = []string{
	"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
	"virtio_blk", "virtio_console", "virtio_net", "ext4", "overlay",
}

// optional are the modules that some engine or kernel wants and others lack. With tcp_diag a thawed guest can end the connections
// that it was frozen with.
var optional = []string{"virtio_mmio", "virtio_rng", "vmw_vsock_virtio_transport", "tcp_diag"}

// module is a kernel module file and what must be loaded before it.
type module struct {
	name string
	path string // relative to the modules directory
	deps []string
}

// moduleTree is a directory of kernel modules: lib/modules/RELEASE of a kernel package.
type moduleTree struct {
	root    *os.Root
	modules map[string]*module
	builtin map[string]bool
	indexed bool // there was a modules.dep, so deps are known
}

// moduleName turns a path such as kernel/drivers/char/hw_random/virtio-rng.ko.xz into virtio_rng, or "" when it is none.
func moduleName(file string) string {
	base := path.Base(file)
	for _, ext := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, ext); ok {
			return strings.ReplaceAll(name, "-", "_")
		}
	}
	return ""
}

// openModules reads what dir has. modules.dep is made by depmod when a package is installed, so an unpacked package has
// none: then the modules themselves are asked for their dependencies, as depmod would.
func openModules(dir string) (*moduleTree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, spore.Invalidf("modules", "cannot open the modules directory: %w", err).
			WithHint("give the directory lib/modules/RELEASE that belongs to the kernel")
	}
	t := &moduleTree{root: root, modules: map[string]*module{}, builtin: map[string]bool{}}
	if err := t.read(); err != nil {
		root.Close()
		return nil, err
	}
	return t, nil
}

func (t *moduleTree) Close() error { return t.root.Close() }

func (t *moduleTree) read() error {
	builtin, err := t.root.ReadFile("modules.builtin")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return spore.Invalidf("modules", "cannot read modules.builtin: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		if name := moduleName(strings.TrimSpace(line)); name != "" {
			t.builtin[name] = true
		}
	}

	index, err := t.root.ReadFile("modules.dep")
	if err == nil {
		t.indexed = true
		return t.readIndex(index)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return spore.Invalidf("modules", "cannot read modules.dep: %w", err)
	}
	err = fs.WalkDir(t.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := moduleName(p); name != "" && d.Type().IsRegular() {
			t.modules[name] = &module{name: name, path: p}
		}
		return nil
	})
	if err != nil {
		return spore.Invalidf("modules", "cannot walk the modules directory: %w", err)
	}
	if len(t.modules) == 0 && len(t.builtin) == 0 {
		return spore.Invalidf("modules", "the directory holds neither modules.dep nor any kernel module").
			WithHint("give the directory lib/modules/RELEASE that belongs to the kernel")
	}
	return nil
}

func (t *moduleTree) readIndex(index []byte) error {
	modules, err := parseModulesDep(index)
	if err != nil {
		return err
	}
	for _, m := range modules {
		t.modules[m.name] = m
	}
	return nil
}

// parseModulesDep reads the lines "kernel/a.ko: kernel/b.ko kernel/c.ko" of a modules.dep.
func parseModulesDep(data []byte) ([]*module, error) {
	var modules []*module
	n := 0
	for line := range bytes.Lines(data) {
		n++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		file, deps, ok := strings.Cut(text, ":")
		m := &module{name: moduleName(file), path: file}
		if !ok || m.name == "" || !fs.ValidPath(file) {
			return nil, spore.Invalidf("modules", "modules.dep, line %d: not of the form PATH: PATHS", n)
		}
		for dep := range strings.FieldsSeq(deps) {
			name := moduleName(dep)
			if name == "" {
				return nil, spore.Invalidf("modules", "modules.dep, line %d: %q is not a module", n, dep)
			}
			m.deps = append(m.deps, name)
		}
		modules = append(modules, m)
	}
	return modules, nil
}

// loadedModule is a module ready to be put into an initramfs.
type loadedModule struct {
	name    string
	release string // of the kernel it was built for
	data    []byte // an ELF file, whatever it was compressed with
}

// resolve returns the required modules, the optional ones that exist, and all they need, in an order in which each can
// be loaded.
func (t *moduleTree) resolve() ([]loadedModule, error) {
	var order []loadedModule
	state := map[string]int{} // 1: being visited, 2: done
	var visit func(name, wantedBy string) error
	visit = func(name, wantedBy string) error {
		if t.builtin[name] || state[name] == 2 {
			return nil
		}
		if state[name] == 1 {
			return spore.Invalidf("modules", "module %s needs itself by way of %s", name, wantedBy)
		}
		state[name] = 1
		m := t.modules[name]
		if m == nil {
			what := "the guest"
			if wantedBy != "" {
				what = "module " + wantedBy
			}
			return spore.Invalidf("modules", "module %s, which %s needs, is missing", name, what).
				WithHint("use a kernel that has its virtio drivers and overlayfs as modules or built in, such as linux-image-cloud-amd64")
		}
		loaded, err := t.load(m)
		if err != nil {
			return err
		}
		for _, dep := range m.deps {
			if err := visit(dep, name); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, loaded)
		return nil
	}
	for _, name := range required {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	for _, name := range optional {
		if t.modules[name] == nil {
			continue
		}
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// load reads a module and, where there was no index, learns its dependencies.
func (t *moduleTree) load(m *module) (loadedModule, error) {
	data, err := t.root.ReadFile(m.path)
	if err == nil {
		data, err = decompressModule(m.path, data)
	}
	if err != nil {
		return loadedModule{}, spore.Invalidf("modules", "cannot read module %s: %w", m.name, err)
	}
	info, err := modinfo(data)
	if err != nil {
		return loadedModule{}, spore.Invalidf("modules", "module %s: %w", m.name, err)
	}
	if !t.indexed {
		for dep := range strings.SplitSeq(info["depends"], ",") {
			if dep != "" {
				m.deps = append(m.deps, strings.ReplaceAll(dep, "-", "_"))
			}
		}
	}
	release, _, _ := strings.Cut(info["vermagic"], " ")
	return loadedModule{name: m.name, release: release, data: data}, nil
}

// modinfo reads the key=value strings of a module's .modinfo section. Of a key that occurs twice the first value counts.
func modinfo(data []byte) (map[string]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("not a kernel module: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_REL {
		return nil, fmt.Errorf("not a kernel module for x86-64: it is %v, %v", f.Machine, f.Type)
	}
	section := f.Section(".modinfo")
	if section == nil || section.Type == elf.SHT_NOBITS || section.Size > uint64(len(data)) {
		return nil, errors.New("not a kernel module: it has no .modinfo section")
	}
	raw, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("unreadable .modinfo section: %w", err)
	}
	info := map[string]string{}
	for entry := range bytes.SplitSeq(raw, []byte{0}) {
		key, value, ok := strings.Cut(string(entry), "=")
		if _, seen := info[key]; ok && !seen {
			info[key] = value
		}
	}
	return info, nil
}
