// Package initbin finds the spore-init executable that goes into a kernel bundle: in the program itself, or beside it.
package initbin

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sporevm/spore"
)

// files holds spore-init.gz when the program was built with `make build`. The README keeps the pattern from failing
// where that file was not made, as on a clean clone.
//
//go:embed files
var files embed.FS

const (
	embedded = "files/spore-init.gz"
	beside   = "spore-init"
)

// Load returns spore-init. With a path it is that file; with "" it is the one that was built into the program, else the
// file spore-init in the directory of the program. It fails with spore.CodeInvalid on field init when the path cannot
// be read, and with spore.CodeNotFound when there is none to be found.
func Load(path string) ([]byte, error) {
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, spore.Invalidf("init", "cannot read spore-init: %w", err)
		}
		return data, nil
	}
	packed, err := files.ReadFile(embedded)
	if err == nil {
		return unpack(packed)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	exe, err := os.Executable()
	if err == nil {
		// A link to the program, as package managers make them, leads to the directory that matters.
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err == nil {
		var data []byte
		if data, err = os.ReadFile(filepath.Join(filepath.Dir(exe), beside)); err == nil {
			return data, nil
		}
	}
	return nil, spore.Errorf(spore.CodeNotFound, "this program was built without spore-init, and there is none beside it").WithCause(err).
		WithHint("build with `make build`, or put spore-init beside the program")
}

func unpack(packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("the spore-init built into this program is damaged: %w", err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("the spore-init built into this program is damaged: %w", err)
	}
	return data, nil
}
