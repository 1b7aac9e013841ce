package cli_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/cli"
)

// TestHintsNameCommandsThatExist reads every hint of the program: a command that one tells the user to run is there, with
// the flags that it is told to have.
func TestHintsNameCommandsThatExist(t *testing.T) {
	named := regexp.MustCompile("\\bspore ([a-z][^:;.,`\"\n]*)")
	flag := regexp.MustCompile(`--([a-z][a-z-]*)`)
	checked := 0
	for hint, at := range hints(t, "../..") {
		for _, m := range named.FindAllStringSubmatch(hint, -1) {
			words := strings.Fields(m[1])
			cmd, _, err := cli.Root().Find(words[:1])
			if err != nil || cmd.Parent() == nil {
				if !slices.Contains([]string{"that"}, words[0]) { // a sentence about Spore
					t.Errorf("%s: there is no command %q in %q", at, words[0], hint)
				}
				continue
			}
			if cmd.HasSubCommands() {
				if sub, _, err := cmd.Find(words[1:min(2, len(words))]); err != nil || sub == cmd {
					t.Errorf("%s: there is no command %q in %q", at, m[1], hint)
					continue
				} else {
					cmd = sub
				}
			}
			checked++
			for _, f := range flag.FindAllStringSubmatch(m[1], -1) {
				if cmd.Flags().Lookup(f[1]) == nil && cmd.InheritedFlags().Lookup(f[1]) == nil {
					t.Errorf("%s: %s has no flag --%s, named in %q", at, cmd.CommandPath(), f[1], hint)
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d hints name a command; are they still found?", checked)
	}
}

// hints answers the hints that are written in the source below dir, and where.
func hints(t *testing.T, dir string) map[string]string {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			t.Logf("%s is left out: %v", path, err)
			return nil
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			if fun, ok := call.Fun.(*ast.SelectorExpr); !ok || fun.Sel.Name != "WithHint" {
				return true
			}
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					found[text] = files.Position(lit.Pos()).String()
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
