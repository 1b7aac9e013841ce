//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/testbed"
)

const (
	// outerMiB is enough for the outer guest and a few small sandboxes in it.
	outerMiB = 3072
	// bound ends a lab that hangs. A sound one takes a few minutes, and as many again for each Firecracker.
	bound = 50 * time.Minute
	// stillness is how long an outer guest may be silent, which says every ten seconds that it lives.
	stillness = 2 * time.Minute
	// outers is how many outer guests are tried. Emulated SVM now and then loses an outer guest's timer, or corrupts its memory.
	outers = 3
	// packages are what the outer guest needs to run sandboxes.
	packages = "qemu-system-x86,busybox-static,kmod,e2fsprogs,procps"
	recipe   = "1" // another number makes the outer root anew
)

// step runs in the outer guest. It has a script, and loads what the script wants into the cargo.
type step struct {
	name, script string
	load         func(t *testing.T, c cargo)
}

// steps are all that there are, in their order: those of QEMU, and for each Firecracker that was named its own.
func steps(t *testing.T) []step {
	all := []step{
		{"kvm", "kvm.sh", func(*testing.T, cargo) {}},
		{"engine", "engine.sh", loadEngine},
		{"lifecycle", "lifecycle.sh", loadLifecycle},
		{"network", "network.sh", loadLifecycle},
	}
	installed := firecrackers(t)
	for _, f := range installed {
		whole := func(t *testing.T, c cargo) { loadLifecycle(t, c); f.put(t, c) }
		all = append(all,
			step{"engine-" + f.name, "firecracker.sh", func(t *testing.T, c cargo) { loadFirecracker(t, c, f) }},
			step{"lifecycle-" + f.name, "lifecycle.sh", whole}, step{"network-" + f.name, "network.sh", whole})
	}
	if len(installed) > 1 {
		all = append(all, step{"versions", "versions.sh", func(t *testing.T, c cargo) {
			loadLifecycle(t, c)
			for _, f := range installed {
				f.put(t, c)
			}
		}})
	}
	var names []string
	for _, s := range all {
		names = append(names, s.name)
	}
	for word := range strings.SplitSeq(*only, ",") {
		if *only != "" && !slices.ContainsFunc(names, func(name string) bool { return named(word, name) }) {
			t.Fatalf("-steps: there is no step %q; there are %s", word, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(all, func(s step) bool { return !chosen(s.name) })
}

var only = flag.String("steps", "", "the steps to run, such as kvm,engine; engine, lifecycle and network stand for those of every engine; all when empty")

func chosen(step string) bool {
	return *only == "" || slices.ContainsFunc(strings.Split(*only, ","), func(word string) bool { return named(word, step) })
}

// named says whether word is the step's name, or that of its kind.
func named(word, step string) bool {
	group, _, _ := strings.Cut(step, "-")
	return word == step || word == group
}

func TestLab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the lab needs root to make its disks")
	}
	repo, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	store := kernel.Open(filepath.Join(t.TempDir(), "kernels"))
	vmlinuz, modules := testbed.KernelFiles(t)
	init := read(t, build(t, repo, t.TempDir(), "init", "./lab/testdata/init"))
	bundle, err := store.Install(t.Context(), kernel.Source{Kernel: vmlinuz, Modules: modules, Init: init}, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := outerRoot(t, repo, modules)
	todo := steps(t)
	deadline := time.Now().Add(bound)
	results := map[string]string{}
	for left, n := todo, 1; len(left) > 0; n++ {
		err := boot(t, deadline, bundle, root, loadCargo(t, repo, bundle, left), results)
		if err == nil {
			break
		}
		left = slices.DeleteFunc(slices.Clone(left), func(s step) bool { return results[s.name] != "" })
		if n == outers || time.Now().After(deadline) {
			t.Errorf("outer guest %d: %v", n, err)
			break
		}
		// That is no verdict on the step that it was at.
		t.Logf("outer guest %d: %v; another one takes its place", n, err)
	}
	for _, step := range todo {
		t.Run(step.name, func(t *testing.T) {
			switch result := results[step.name]; result {
			case "0":
			case "":
				t.Error("it did not end: see the console above")
			default:
				t.Errorf("it ended with status %s: see the console above", result)
			}
		})
	}
}

// outerRoot makes the root disk of the outer guest: a small Debian with QEMU and the kernel's modules. It is kept.
func outerRoot(t *testing.T, repo, modules string) string {
	t.Helper()
	release := filepath.Base(modules)
	sum := sha256.Sum256([]byte(recipe + packages + release))
	cache := filepath.Join(repo, ".cache", "lab")
	disk := filepath.Join(cache, "root-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(disk); err == nil {
		return disk
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Log("making the outer root (kept in .cache/lab)")
	dir := filepath.Join(t.TempDir(), "root")
	run(t, repo, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+packages,
		"--customize-hook=mkdir -p \"$1/lib/modules\" \"$1/cargo\"",
		"--customize-hook=cp -r "+modules+" \"$1/lib/modules/\"",
		"--customize-hook=chroot \"$1\" depmod "+release,
		"bookworm", dir)
	mkdisk(t, disk+".aside", 3<<30, dir)
	if err := os.Rename(disk+".aside", disk); err != nil {
		t.Fatal(err)
	}
	return disk
}

// mkdisk makes a sparse ext4 image that holds the tree dir.
func mkdisk(t *testing.T, path string, size int64, dir string) {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	run(t, "/", "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", dir, path)
}

// cargo is the tree of the second disk: the programs of this checkout, and what they are tried on.
type cargo struct {
	repo, dir string
}

// put copies a file or directory, named from the root of the checkout, to a place in the cargo.
func (c cargo) put(t *testing.T, from, to string) {
	t.Helper()
	to = filepath.Join(c.dir, to)
	if _, err := os.Stat(to); err == nil {
		return // another step wanted it too
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, c.repo, "cp", "-a", from, to)
}

func loadCargo(t *testing.T, repo string, probe *kernel.Bundle, todo []step) string {
	t.Helper()
	c := cargo{repo: repo, dir: filepath.Join(t.TempDir(), "cargo")}
	c.put(t, "lab/main.sh", "main")
	c.put(t, probe.VmlinuzPath(), "vmlinuz")
	c.put(t, probe.InitrdPath(), "initrd")
	for i, step := range todo {
		c.put(t, filepath.Join("lab", step.script), fmt.Sprintf("steps/%02d-%s", i, step.name))
		step.load(t, c)
	}
	disk := filepath.Join(t.TempDir(), "cargo.disk")
	mkdisk(t, disk, 16<<30, c.dir) // sparse; Spore wants room for what its sandboxes may write
	return disk
}

// loadSuite brings an engine's test binary, with what its tests would build: nothing can be built where they run.
func loadSuite(t *testing.T, c cargo, engine string) {
	t.Helper()
	c.put(t, testbed.KernelTree(t), "testbed/kernel-tree")
	c.put(t, build(t, c.repo, t.TempDir(), "guest", "./internal/vmm/vmmtest/guest"), "engine/guest")
	run(t, c.repo, "go", "test", "-c", "-o", filepath.Join(c.dir, "engine", engine+".test"), "./internal/vmm/"+engine)
}

func loadEngine(t *testing.T, c cargo) {
	t.Helper()
	loadSuite(t, c, "qemu")
	testdata := "internal/vmm/qemu/testdata"
	if _, err := os.Stat(filepath.Join(c.repo, testdata)); err == nil {
		c.put(t, testdata, "engine/testdata")
	}
}

// loadLifecycle brings the spore program as it is shipped, and an image.
func loadLifecycle(t *testing.T, c cargo) {
	t.Helper()
	c.put(t, "bin/spore", "spore")
	c.put(t, testbed.Image(t, testbed.Busybox), "image")
}

// boot runs an outer guest to its end and notes in results the exit status of each step that said one. It fails when the outer guest
// itself did. It has one processor: with two, each emulated by a thread of its own, that happens far more often (QEMU 7.2).
func boot(t *testing.T, deadline time.Time, bundle *kernel.Bundle, root, second string, results map[string]string) error {
	t.Helper()
	ctx, cancel := context.WithDeadlineCause(t.Context(), deadline, errors.New("the lab takes too long"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "q35,accel=tcg", "-cpu", "EPYC,+svm", "-m", fmt.Sprint(outerMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", bundle.VmlinuzPath(), "-initrd", bundle.InitrdPath(),
		"-append", "console=ttyS0 quiet panic=-1 reboot=t mitigations=off no_timer_check lab.root=/dev/vda lab.cargo=/dev/vdb",
		"-drive", "file="+root+",format=raw,if=virtio,snapshot=on",
		"-drive", "file="+second+",format=raw,if=virtio,cache=unsafe",
		"-device", "virtio-rng-pci")
	// QEMU names on every start the features of the processor that it does not emulate; they do not matter here.
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	quiet := time.AfterFunc(stillness, func() { stop(errors.New("it stands still")) })
	defer quiet.Stop()
	over := false
	for lines := bufio.NewReader(console); err == nil; {
		var line string
		line, err = lines.ReadString('\n')
		quiet.Reset(stillness)
		line = strings.TrimRight(strings.ReplaceAll(line, "LAB-ALIVE", ""), "\r\n")
		if line != "" {
			fmt.Printf("%6.1f %s\n", time.Since(began).Seconds(), line)
		}
		fields := strings.Fields(line)
		switch {
		case len(fields) == 3 && fields[0] == "LAB-RESULT":
			_, name, _ := strings.Cut(fields[1], "-") // after its number
			results[name] = fields[2]
		case line == "LAB-OVER":
			over = true
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	err = errors.Join(context.Cause(ctx), err, cmd.Wait())
	switch {
	case err != nil:
		return fmt.Errorf("%w\n%s", err, complaints.String())
	case !over:
		return errors.New("it ended before its steps were over: see the console above")
	}
	return nil
}

func build(t *testing.T, repo, dir, name, pkg string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	t.Setenv("CGO_ENABLED", "0")
	run(t, repo, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	return path
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
