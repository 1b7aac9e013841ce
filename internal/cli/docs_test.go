package cli_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/cli"
)

// TestTemplateCenterPage holds docs/template-center.md against what there is: every command, call and test that it names
// exists, and no row is half done.
func TestTemplateCenterPage(t *testing.T) {
	const page = "../../docs/template-center.md"
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	if strings.Contains(strings.ToLower(text), "partly") {
		t.Error("a row says partly")
	}
	seen := checkPage(t, text)
	if seen["command"] < 100 || seen["call"] < 100 || seen["test"] < 100 {
		t.Errorf("found %v only", seen)
	}
}

// checkPage looks for each command, call and test that a page names, and counts them.
func checkPage(t *testing.T, text string) (seen map[string]int) {
	tests, groups := testsOf(t, "../..")
	seen = map[string]int{}
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		quoted := m[1]
		words := strings.Fields(quoted)
		switch {
		case strings.HasPrefix(quoted, "spore ") && !strings.HasPrefix(words[1], "--"):
			seen["command"]++
			checkCommand(t, words[1:])
		case regexp.MustCompile(`^(GET|POST|PUT|PATCH|DELETE|HEAD) /`).MatchString(quoted):
			seen["call"]++
			checkCall(t, words[0], words[1])
		case strings.HasPrefix(quoted, "Test"):
			seen["test"]++
			name, sub, _ := strings.Cut(quoted, "/")
			group, _, _ := strings.Cut(sub, "/")
			if !tests[name] || name == "TestConformance" && group != "" && !groups[group] {
				t.Errorf("there is no test %s", quoted)
			}
		}
	}
	return seen
}

func checkCommand(t *testing.T, words []string) {
	cmd := cli.Root()
	for len(words) > 0 {
		var next *cobra.Command
		for _, sub := range cmd.Commands() {
			if sub.Name() == words[0] || sub.HasAlias(words[0]) {
				next = sub
			}
		}
		if next == nil {
			break
		}
		cmd, words = next, words[1:]
	}
	if !cmd.HasParent() || cmd.HasSubCommands() {
		t.Errorf("there is no command %q under %q", words, cmd.CommandPath())
	}
	for _, w := range words {
		if name, long := strings.CutPrefix(w, "--"); long && cmd.Flags().Lookup(name) == nil {
			t.Errorf("%s has no flag %s", cmd.CommandPath(), w)
		}
	}
}

var spec = regexp.MustCompile(`(?m)^  (/\S*):$|^    (get|post|put|patch|delete|head):`)

// checkCall looks for a call in the description of the API, with each parameter that it is given.
func checkCall(t *testing.T, method, target string) {
	path, query, _ := strings.Cut(target, "?")
	at := ""
	for _, m := range spec.FindAllStringSubmatch(string(api.Spec), -1) {
		if m[1] != "" {
			at = m[1]
			continue
		}
		if at == path && strings.EqualFold(m[2], method) {
			for _, param := range strings.Split(query, "&") {
				if name, _, _ := strings.Cut(param, "="); name != "" && !strings.Contains(string(api.Spec), "name: "+name+"\n") && !strings.Contains(string(api.Spec), "name: "+name+",") {
					t.Errorf("%s %s: nothing takes %s", method, target, name)
				}
			}
			return
		}
	}
	t.Errorf("there is no %s %s", method, target)
}

// testsOf answers the names of all tests below dir, and those of the groups of the store's conformance suite.
func testsOf(t *testing.T, dir string) (tests, groups map[string]bool) {
	tests, groups = map[string]bool{}, map[string]bool{}
	named := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	grouped := regexp.MustCompile(`(?m)^\t\t\{"(\w+)", test\w+\},$`)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		raw, err := os.ReadFile(path)
		if strings.HasSuffix(path, "_test.go") {
			for _, m := range named.FindAllSubmatch(raw, -1) {
				tests[string(m[1])] = true
			}
		}
		if strings.Contains(path, "storetest") {
			for _, m := range grouped.FindAllSubmatch(raw, -1) {
				groups[string(m[1])] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests, groups
}
