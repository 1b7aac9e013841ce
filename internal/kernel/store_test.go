package kernel_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/testbed"
)

// source is a real kernel with its modules and, as init, a static executable that differs with mark.
func source(t *testing.T, mark string) kernel.Source {
	t.Helper()
	vmlinuz, modules := testbed.KernelFiles(t)
	init, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: run `make deps`", err)
	}
	return kernel.Source{Kernel: vmlinuz, Modules: modules, Init: append(init, mark...)}
}

func install(t *testing.T, s *kernel.Store, src kernel.Source) *kernel.Bundle {
	t.Helper()
	b, err := s.Install(context.Background(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	s := kernel.Open(dir)
	if _, err := s.Default(); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("Default of an empty store = %v", err)
	}
	first := install(t, s, source(t, ""))
	for _, m := range []string{"virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "overlay"} {
		if !slices.Contains(first.Modules, m) {
			t.Errorf("module %s is missing of %v", m, first.Modules)
		}
	}
	if slices.Index(first.Modules, "net_failover") > slices.Index(first.Modules, "virtio_net") {
		t.Errorf("virtio_net is before what it needs: %v", first.Modules)
	}
	if !strings.HasSuffix(first.KernelVersion, "-cloud-amd64") || !strings.HasPrefix(first.AgentVersion, "dev+") {
		t.Errorf("versions: %q, %q", first.KernelVersion, first.AgentVersion)
	}
	if err := s.Verify(context.Background(), first.ID); err != nil {
		t.Error(err)
	}

	t.Run("several side by side", func(t *testing.T) {
		second := install(t, s, source(t, "another"))
		if second.ID == first.ID || second.Vmlinuz != first.Vmlinuz || second.AgentVersion == first.AgentVersion {
			t.Errorf("another init gave %+v beside %+v", second, first)
		}
		if b, err := s.Default(); err != nil || b.ID != second.ID {
			t.Errorf("Default = %v, %v; want the latest, %s", b, err, second.ID)
		}
	})
	t.Run("again", func(t *testing.T) {
		again := install(t, s, source(t, ""))
		if again.ID != first.ID {
			t.Errorf("the same inputs gave %s and %s", first.ID, again.ID)
		}
		all, err := s.List()
		if err != nil || len(all) != 2 || all[0].ID != first.ID {
			t.Errorf("List = %v, %v; want two, %s first", all, err, first.ID)
		}
	})
	t.Run("remove", func(t *testing.T) {
		if err := s.Remove(t.Context(), first.ID); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), first.ID); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("the second Remove = %v", err)
		}
		if _, err := s.Get(first.ID); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("Get of a removed bundle = %v", err)
		}
	})
	onlyBundles(t, dir, 1)
}

// onlyBundles says whether the store's directory holds n bundles and the lock, and nothing else.
func onlyBundles(t *testing.T, dir string, n int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != n+1 {
		t.Errorf("%s holds %v; want %d bundles and the lock", dir, entries, n)
	}
}

func TestInstallAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	src := source(t, "")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := kernel.Open(dir).Install(context.Background(), src, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	onlyBundles(t, dir, 1)
}

func TestInstallSweepsWhatAKilledOneLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	if err := os.MkdirAll(filepath.Join(dir, ".aside-1/bundle"), 0o755); err != nil {
		t.Fatal(err)
	}
	install(t, kernel.Open(dir), source(t, ""))
	onlyBundles(t, dir, 1)
}

func TestInstallPackage(t *testing.T) {
	dir := t.TempDir()
	// A host whose package lists were never read, as a fresh one is.
	if err := os.WriteFile(filepath.Join(dir, "apt.conf"), []byte(`Dir::State::lists "`+dir+`/lists";`), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", filepath.Join(dir, "apt.conf"))
	deb, err := kernel.FetchPackage(context.Background(), kernel.DefaultPackage, dir)
	if err != nil {
		t.Fatal(err)
	}
	s := kernel.Open(filepath.Join(dir, "kernels"))
	src := source(t, "")
	direct := install(t, s, src)
	packed := install(t, s, kernel.Source{Package: deb, Init: src.Init})
	if packed.ID != direct.ID || packed.Source != filepath.Base(deb) {
		t.Errorf("the package gave %+v, its files %+v", packed, direct)
	}
}

func TestInstallRefusals(t *testing.T) {
	good := source(t, "")
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "file.deb")
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name   string
		change func(*kernel.Source)
		field  string
	}{
		{"no init", func(s *kernel.Source) { s.Init = nil }, "init"},
		{"a script as init", func(s *kernel.Source) { s.Init = []byte("#!/bin/sh\n") }, "init"},
		{"no such kernel", func(s *kernel.Source) { s.Kernel = "/no/such" }, "kernel"},
		{"an empty kernel", func(s *kernel.Source) { s.Kernel = file("") }, "kernel"},
		{"a text as kernel", func(s *kernel.Source) { s.Kernel = file(strings.Repeat("x", 4096)) }, "kernel"},
		{"a directory as kernel", func(s *kernel.Source) { s.Kernel = t.TempDir() }, "kernel"},
		{"a device as kernel", func(s *kernel.Source) { s.Kernel = "/dev/zero" }, "kernel"},
		{"an arm64 kernel", func(s *kernel.Source) {
			s.Kernel = file(strings.Repeat("x", 0x38) + "ARM\x64" + strings.Repeat("x", 4096))
		}, "kernel"},
		{"modules alone", func(s *kernel.Source) { s.Kernel = "" }, "kernel"},
		{"a kernel alone", func(s *kernel.Source) { s.Modules = "" }, "modules"},
		{"no such modules", func(s *kernel.Source) { s.Modules = "/no/such" }, "modules"},
		{"an empty modules directory", func(s *kernel.Source) { s.Modules = t.TempDir() }, "modules"},
		{"kernel and package", func(s *kernel.Source) { s.Package = kernel.DefaultPackage }, "package"},
		{"no such package file", func(s *kernel.Source) { s.Kernel, s.Modules, s.Package = "", "", "./no.deb" }, "package"},
		{"an empty package file", func(s *kernel.Source) { s.Kernel, s.Modules, s.Package = "", "", file("") }, "package"},
		{"a text as package", func(s *kernel.Source) { s.Kernel, s.Modules, s.Package = "", "", file("text") }, "package"},
		{"an option as package", func(s *kernel.Source) { s.Kernel, s.Modules, s.Package = "", "", "--help" }, "package"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "kernels")
			src := good
			test.change(&src)
			_, err := kernel.Open(dir).Install(context.Background(), src, nil)
			var e *spore.Error
			if !errors.As(err, &e) || e.Code != spore.CodeInvalid || e.Field != test.field {
				t.Errorf("Install = %v, want a refusal of field %s", err, test.field)
			}
			if entries, err := os.ReadDir(dir); err == nil && len(entries) > 1 {
				t.Errorf("it left %v", entries)
			}
		})
	}
	t.Run("no such package", func(t *testing.T) {
		src := kernel.Source{Package: "linux-image-of-nobody", Init: good.Init}
		if _, err := kernel.Open(t.TempDir()).Install(context.Background(), src, nil); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("Install = %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := kernel.Open(t.TempDir()).Install(ctx, good, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("Install = %v", err)
		}
	})
}

func TestDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	s := kernel.Open(dir)
	src := source(t, "")
	b := install(t, s, src)
	sound := install(t, s, source(t, "sound"))

	flip := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	flip(b.InitrdPath())
	if err := s.Verify(context.Background(), b.ID); spore.CodeOf(err) != spore.CodeDamaged {
		t.Errorf("Verify with a flipped bit = %v", err)
	}
	if err := os.Truncate(b.VmlinuzPath(), 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(b.ID); spore.CodeOf(err) != spore.CodeDamaged {
		t.Errorf("Get with a short kernel = %v", err)
	}
	all, err := s.List()
	if len(all) != 1 || all[0].ID != sound.ID || spore.CodeOf(err) != spore.CodeDamaged {
		t.Errorf("List = %v, %v; want the sound one and what is wrong with the other", all, err)
	}
	if repaired := install(t, s, src); repaired.ID != b.ID {
		t.Errorf("installing again made %s", repaired.ID)
	}
	if err := s.Verify(context.Background(), b.ID); err != nil {
		t.Errorf("after installing again: %v", err)
	}
	onlyBundles(t, dir, 2)
}

func TestRecordOfAnotherBundle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	s := kernel.Open(dir)
	b := install(t, s, source(t, ""))
	record := filepath.Join(dir, b.ID, "bundle.json")
	data, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	fields["id"] = "krn-000000000000000000000000"
	if data, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(b.ID); spore.CodeOf(err) != spore.CodeDamaged {
		t.Errorf("Get = %v", err)
	}
	for _, id := range []string{"", "..", "krn-", "krn-../../etc", b.ID + "/"} {
		if _, err := s.Get(id); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("Get(%q) = %v", id, err)
		}
		if err := s.Remove(t.Context(), id); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("Remove(%q) = %v", id, err)
		}
	}
}

func TestInstallWaitsForItsTurnNoLongerThanAsked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	s := kernel.Open(dir)
	src := source(t, "")
	began, done := make(chan struct{}), make(chan error)
	var once sync.Once
	hold := make(chan struct{})
	go func() {
		_, err := s.Install(t.Context(), src, func(string) {
			once.Do(func() { close(began) })
			<-hold
		})
		done <- err
	}()
	<-began
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Install(ctx, src, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Install beside another = %v", err)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
