package initbin

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/sporevm/spore"
)

func TestLoadPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, []byte("init"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(path); err != nil || string(got) != "init" {
		t.Errorf("Load = %q, %v", got, err)
	}
	if _, err := Load(path + "x"); spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Field != "init" {
		t.Errorf("Load of a missing file = %v", err)
	}
}

func TestLoadFound(t *testing.T) {
	if _, err := files.Open(embedded); err == nil {
		if got, err := Load(""); err != nil || !bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Errorf("Load of the embedded file = %d bytes, %v", len(got), err)
		}
		return
	}
	if _, err := Load(""); spore.CodeOf(err) != spore.CodeNotFound || spore.AsError(err).Hint == "" {
		t.Errorf("Load without any = %v", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	neighbour := filepath.Join(filepath.Dir(exe), beside)
	if err := os.WriteFile(neighbour, []byte("init"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(neighbour)
	if got, err := Load(""); err != nil || string(got) != "init" {
		t.Errorf("Load of the file beside the program = %q, %v", got, err)
	}
}

func TestUnpackDamaged(t *testing.T) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write([]byte("init")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := unpack(buf.Bytes()); err != nil || string(got) != "init" {
		t.Errorf("unpack = %q, %v", got, err)
	}
	if _, err := unpack(buf.Bytes()[:buf.Len()-4]); err == nil {
		t.Error("a cut file passed")
	}
}
