package spore_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sporevm/spore"

// floors is the house from the top to the bottom. A package may import from its own room and from the floors below it.
// Rooms of one floor do not know each other.
var floors = [][]string{
	{"cmd/spore", "cmd/spore-init", "lab", "demo"},
	{"internal/cli", "internal/daemon", "internal/bench"},
	{"client", "internal/gateway"},
	{"internal/center"},
	{"internal/store", "internal/node"},
	{"internal/frozen"},
	{"internal/image", "internal/kernel"},
	{"internal/vmm"},
	{"internal/guest"},
	{"internal/agent"}, // inside the guest; it declares the messages that package guest sends
	{"internal/network", "internal/cgroup"},
	{"internal/transfer", "internal/thread"},
	{"api"},
	{""}, // the root package
}

// exceptions are imports that the order of floors would allow but the plan of the house forbids: what stands on the
// left must not reach what stands on the right.
var exceptions = map[string][]string{
	"":                {"*"},
	"api":             {"internal"},
	"client":          {"internal"},
	"internal/cli":    {"internal"},
	"internal/center": {"internal/node", "internal/vmm", "internal/frozen", "internal/image", "internal/kernel", "internal/guest", "internal/agent"},
	"internal/store":  {"internal/frozen", "internal/image", "internal/kernel", "internal/vmm", "internal/guest", "internal/agent"},
	"cmd/spore-init":  {"client", "internal/center", "internal/store", "internal/node", "internal/frozen", "internal/image", "internal/kernel", "internal/vmm", "internal/network", "internal/transfer"},
}

// contracts are the packages by which a room is spoken to from a floor below it: a machine implements what the center
// declares it wants of one.
var contracts = map[string][]string{
	"internal/node": {"internal/center"},
}

// forbiddenNames say nothing of what is inside.
var forbiddenNames = []string{"utils", "util", "common", "helpers", "helper", "types", "misc", "base", "lib", "shared"}

const maxLines = 500

// source is one Go file of the module.
type source struct {
	path      string // slash-separated, from the root of the module
	dir       string // of path; "" for the root package
	text      string
	file      *ast.File
	test      bool
	generated bool
}

// sources reads every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		if dir == "." {
			dir = ""
		}
		all = append(all, source{
			path: filepath.ToSlash(path), dir: dir, text: string(text), file: file,
			test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(file),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// room finds the room of a package and its floor, counted from the top; ok is false for a package that has none.
func room(dir string) (name string, floor int, ok bool) {
	for floor, rooms := range floors {
		for _, name := range rooms {
			if dir == name || name != "" && strings.HasPrefix(dir, name+"/") {
				return name, floor, true
			}
		}
	}
	return "", 0, false
}

// testSupport says whether a package exists for tests only, which may reach every floor.
func testSupport(dir string) bool {
	return dir == "internal/testbed" || strings.HasSuffix(dir, "test")
}

func TestFloors(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || testSupport(s.dir) {
			continue
		}
		from, fromFloor, ok := room(s.dir)
		if !ok {
			t.Errorf("%s: package %s has no floor; give it one in floors", s.path, s.dir)
			continue
		}
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if from == "" && strings.Contains(strings.Split(path, "/")[0], ".") {
				t.Errorf("%s imports %s: the root package imports the standard library only", s.path, path)
			}
			if path != module && !strings.HasPrefix(path, module+"/") {
				continue
			}
			dir := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
			if testSupport(dir) {
				t.Errorf("%s imports %s, which is for tests", s.path, dir)
				continue
			}
			to, toFloor, ok := room(dir)
			switch {
			case !ok || to == from:
			case slices.Contains(contracts[from], dir):
			case toFloor <= fromFloor:
				t.Errorf("%s imports %s: that runs up from %s", s.path, dir, from)
			case slices.ContainsFunc(exceptions[from], func(no string) bool {
				return no == "*" || dir == no || strings.HasPrefix(dir, no+"/")
			}):
				t.Errorf("%s imports %s, which %s must not know", s.path, dir, from)
			}
		}
	}
}

func TestPackageDocs(t *testing.T) {
	documented := map[string]bool{}
	names := map[string]string{}
	for _, s := range sources(t) {
		if s.test || s.generated {
			continue
		}
		name := s.file.Name.Name
		names[s.dir] = name
		want := "Package " + name + " "
		if name == "main" {
			want = "Command " + filepath.Base(s.dir) + " "
		}
		if doc := s.file.Doc; doc != nil {
			if !strings.HasPrefix(doc.Text(), want) {
				t.Errorf("%s: the package comment does not begin with %q", s.path, want)
			}
			if documented[s.dir] {
				t.Errorf("%s: a second package comment; one file has it", s.path)
			}
			documented[s.dir] = true
		}
	}
	for dir, name := range names {
		if !documented[dir] {
			t.Errorf("package %s (%s) has no package comment", name, dir)
		}
	}
}

func TestFileSize(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(s.text, "\n"); n > maxLines && !s.generated {
			t.Errorf("%s has %d lines; %d is the most", s.path, n, maxLines)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range sources(t) {
		if slices.Contains(forbiddenNames, s.file.Name.Name) {
			t.Errorf("%s: the package name %q says nothing of what is inside", s.path, s.file.Name.Name)
		}
		if slices.Contains(forbiddenNames, strings.TrimSuffix(filepath.Base(s.path), ".go")) {
			t.Errorf("%s: the file name says nothing of what is inside", s.path)
		}
	}
}

func TestNoLooseEnds(t *testing.T) {
	for _, s := range sources(t) {
		if s.generated || s.path == "house_test.go" {
			continue
		}
		for _, group := range s.file.Comments {
			for _, word := range []string{"TODO", "FIXME", "XXX", "HACK"} {
				if strings.Contains(group.Text(), word) {
					t.Errorf("%s: a comment says %s: do it or leave it", s.path, word)
				}
			}
		}
	}
}
