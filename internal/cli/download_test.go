package cli_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// parts are the files that hold unfinished downloads.
func parts(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, ".*.part"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestDownload(t *testing.T) {
	s := newShell(t)
	content := strings.Repeat("a root filesystem ", 1<<17)
	a := s.svc.AddArtifact(content)
	dir := t.TempDir()
	file := filepath.Join(dir, "rootfs.ext4")
	expect := func(want string) {
		t.Helper()
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if left := parts(t, dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if o := s.want(0, "artifact", "download", a.ID, "-O", file); o.out != file+"\n" || !strings.Contains(o.errOut, "downloading 100%") {
		t.Errorf("%+v", o)
	}
	expect(content)

	// What is there is not overwritten unless that is said.
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := s.want(1, "artifact", "download", a.ID, "-O", file); !strings.Contains(o.errOut, "is there already") || !strings.Contains(o.errOut, "--force") {
		t.Errorf("%+v", o)
	}
	expect("mine")
	if o := s.want(0, "artifact", "download", a.ID, "-O", file, "--force", "-o", "json"); !strings.Contains(o.out, a.Digest) {
		t.Errorf("%+v", o)
	}
	expect(content)
	if o := s.want(1, "artifact", "download", a.ID, "-O", dir, "--force"); !strings.Contains(o.errOut, "is a directory") {
		t.Errorf("%+v", o)
	}
	s.want(1, "artifact", "download", "rfs-none", "-O", file+".2")
	s.want(1, "artifact", "download", a.ID, "-O", filepath.Join(dir, "none", "x"))
	s.svc.LoseArtifact(a.ID)
	if o := s.want(1, "artifact", "download", a.ID, "-O", file+".2"); !strings.Contains(o.errOut, "gone") {
		t.Errorf("%+v", o)
	}
	if o := s.want(1, "artifact", "download", a.ID, "-O", file+".2"); !strings.Contains(o.errOut, "is FAILED") {
		t.Errorf("%+v", o)
	}
}

func TestDownloadGoesOn(t *testing.T) {
	s := newShell(t)
	content := strings.Repeat("0123456789abcdef", 1<<16)
	a := s.svc.AddArtifact(content)
	dir := t.TempDir()
	file := filepath.Join(dir, "x")

	// Interrupted in its middle, it keeps what it has.
	ctx, interrupt := context.WithCancel(t.Context())
	s.stderr = writerFunc(func(p []byte) {
		if strings.HasPrefix(string(p), "downloading") {
			interrupt()
		}
	})
	s.svc.Fail = func(m string) error {
		if m == "OpenArtifact/read" {
			<-ctx.Done()
			return errors.New("the disk broke")
		}
		return nil
	}
	if o := s.runContext(ctx, "artifact", "download", a.ID, "-O", file); o.code != 130 || !strings.Contains(o.errOut, "goes on from there") {
		t.Fatalf("%+v", o)
	}
	left := parts(t, dir)
	if len(left) != 1 {
		t.Fatalf("left: %v", left)
	}
	before, err := os.ReadFile(left[0])
	if err != nil || len(before) == 0 || len(before) >= len(content) || !strings.HasPrefix(content, string(before)) {
		t.Fatalf("%d bytes, %v", len(before), err)
	}

	// One download at a time writes to it.
	f, err := os.Open(left[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if o := s.want(1, "artifact", "download", a.ID, "-O", file); !strings.Contains(o.errOut, "code: busy") {
		t.Errorf("%+v", o)
	}
	f.Close()

	// The same command goes on, over a connection that breaks once more.
	broken := 0
	s.svc.Fail = func(m string) error {
		if m == "OpenArtifact/read" && broken == 0 {
			broken++
			return errors.New("the disk broke")
		}
		return nil
	}
	s.want(0, "artifact", "download", a.ID, "-O", file)
	if got, err := os.ReadFile(file); err != nil || string(got) != content || len(parts(t, dir)) > 0 {
		t.Errorf("%d bytes, %v, left %v", len(got), err, parts(t, dir))
	}
	s.svc.Fail = nil

	// A beginning that is not one is thrown away.
	for name, junk := range map[string]string{"wrong": "not the beginning", "long": content + "more"} {
		other := filepath.Join(dir, name)
		part := filepath.Join(dir, "."+name+"."+strings.TrimPrefix(a.Digest, "sha256:")[:16]+".part")
		if err := os.WriteFile(part, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		s.want(0, "artifact", "download", a.ID, "-O", other)
		if got, err := os.ReadFile(other); err != nil || string(got) != content || len(parts(t, dir)) > 0 {
			t.Errorf("%s: %d bytes, %v, left %v", name, len(got), err, parts(t, dir))
		}
	}

	// A link in the place of the unfinished file is not followed.
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, ".y."+strings.TrimPrefix(a.Digest, "sha256:")[:16]+".part")); err != nil {
		t.Fatal(err)
	}
	s.want(1, "artifact", "download", a.ID, "-O", filepath.Join(dir, "y"))
	if got, err := os.ReadFile(victim); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestDownloadOverAFileThatAppears does not overwrite what came to be there meanwhile.
func TestDownloadOverAFileThatAppears(t *testing.T) {
	s := newShell(t)
	a := s.svc.AddArtifact("bytes")
	file := filepath.Join(t.TempDir(), "x")
	s.svc.Fail = func(m string) error {
		if m == "OpenArtifact" {
			if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	if o := s.want(1, "artifact", "download", a.ID, "-O", file); !strings.Contains(o.errOut, "code: "+string(spore.CodeConflict)) {
		t.Errorf("%+v", o)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
}
