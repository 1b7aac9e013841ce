package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const modulesDir = "/modules"

// loadModules loads the modules that DIR/order lists, one path a line, in that order, and then removes them: they take
// up memory that every snapshot would carry. No list means that the kernel has all it needs built in.
func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, path := range parseOrder(string(order), dir) {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
	}
	return os.RemoveAll(dir)
}

// parseOrder returns the listed paths; relative ones begin at dir.
func parseOrder(text, dir string) []string {
	var paths []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(dir, line)
		}
		paths = append(paths, line)
	}
	return paths
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) { // loaded, or built in
		return nil
	}
	return err
}
