package cli_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/cli"
)

func TestSplitWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                       {},
		" a  b\tc\n":             {"a", "b", "c"},
		`sh -c 'echo "a b"; ls'`: {"sh", "-c", `echo "a b"; ls`},
		`a"b c"d ''`:             {"ab cd", ""},
	} {
		if got, err := cli.SplitWords(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	s := newShell(t)
	o := s.want(2, "template", "build", "x", "--image", "x:1", "--cmd", "it's")
	if !strings.Contains(o.errOut, "--cmd: a quote (') is not closed") {
		t.Error(o.errOut)
	}
}

func TestWorkDirIsAbsolute(t *testing.T) {
	s := newShell(t)
	o := s.want(2, "template", "build", "x", "--image", "x:1", "-w", "srv")
	if !strings.Contains(o.errOut, `--workdir takes an absolute path, not "srv"`) {
		t.Error(o.errOut)
	}
	s.want(0, "template", "build", "x", "--image", "x:1", "-w", "/srv")
}

func TestEnvironmentThatIsNotThere(t *testing.T) {
	s := newShell(t)
	s.env["HERE"] = "yes"
	o := s.want(0, "template", "build", "x", "--image", "x:1", "-e", "HERE", "-e", "NOT_HERE", "-e", "EMPTY=", "-o", "json")
	for want, there := range map[string]bool{`"HERE=yes"`: true, "NOT_HERE": false, `"EMPTY="`: true} {
		if strings.Contains(o.out, want) != there {
			t.Errorf("%s in the environment: %v, want %v", want, !there, there)
		}
	}
}
