package cli_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/cli"
)

// history makes entries of "child<parent" words, oldest first.
func history(words string) (entries []api.LineageEntry) {
	for i, word := range strings.Fields(words) {
		child, parent, _ := strings.Cut(word, "<")
		e := api.LineageEntry{ID: child, ParentID: parent, Kind: spore.KindTemplate, Status: spore.TemplateReady, CreatedAt: time.Unix(int64(i), 0)}
		if strings.HasPrefix(child, "x") {
			e.Status = spore.TemplateDeleted
		}
		entries = append(entries, e)
	}
	return entries
}

func TestGraph(t *testing.T) {
	for name, c := range map[string]struct {
		entries string
		newest  int
		want    string
	}{
		"nothing":    {"", 0, ``},
		"a line":     {"a b<a c<b", 0, "* c\n* b\n* a"},
		"two roots":  {"a b", 0, "* b\n\n* a"},
		"a fork":     {"a b<a c<a", 0, "* c\n| * b\n|/\n* a"},
		"three":      {"a b<a c<a d<a", 0, "* d\n| * c\n|/\n| * b\n|/\n* a"},
		"far apart":  {"a b<a c d<c e<a", 0, "* e\n| * d\n| * c\n|\n| * b\n|/\n* a"},
		"crossing":   {"a b c<b d<a e<b f<c", 0, "* f\n| * e\n| | * d\n* | | c\n|/ /\n* | b\n /\n* a"},
		"under two":  {"r s a<r b<s c<r d<s", 0, "* d\n| * c\n| | * b\n|_|/\n| | * a\n| |/\n* | s\n /\n* r"},
		"over one":   {"a b c<a d<b e<a", 0, "* e\n| * d\n| | * c\n|_|/\n| * b\n* a"},
		"the newest": {"a b<a c<b", 2, "* c\n* b"},
		"no parent":  {"b<gone c<b", 0, "* c\n* b"},
		"clock back": {"c<b b<a a", 0, "* c\n* b\n* a"},
		"a cycle":    {"a<b b<a", 0, "* b\n* a"},
		"itself":     {"a<a", 0, "* a"},
	} {
		got := strings.ReplaceAll(cli.Graph(history(c.entries), c.newest, false), " template READY, 1h", "")
		if want := c.want + "\n"; got != want && !(c.want == "" && got == "") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

func TestGraphDimsWhatIsGone(t *testing.T) {
	drawn := cli.Graph(history("xa b<xa"), 0, true)
	if lines := strings.Split(drawn, "\n"); strings.Contains(lines[0], "\x1b") || !strings.HasPrefix(lines[1], "* \x1b[2mxa") || !strings.HasSuffix(lines[1], "\x1b[0m") {
		t.Errorf("%q", drawn)
	}
	if drawn := cli.Graph([]api.LineageEntry{{ID: "a", Reason: "\x1b[2Jhi\nthere"}}, 0, true); strings.Contains(drawn, "\x1b[2J") || strings.Count(drawn, "\n") != 2 {
		t.Errorf("%q", drawn)
	}
}

// FuzzGraph draws any history, damaged ones too: each entry once, children above their parents.
func FuzzGraph(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 0, 7, 3}, uint8(0))
	f.Add([]byte{1, 0}, uint8(1))
	f.Add([]byte{5, 4, 3, 2, 1, 0, 9, 9}, uint8(3))
	f.Fuzz(func(t *testing.T, parents []byte, newest uint8) {
		if len(parents) > 200 {
			return
		}
		var entries []api.LineageEntry
		forward := true // no entry is older than its parent
		for i, p := range parents {
			e := api.LineageEntry{ID: fmt.Sprintf("n%03d", i), CreatedAt: time.Unix(int64(i/3), 0)}
			if int(p) < len(parents) {
				e.ParentID = fmt.Sprintf("n%03d", p)
				forward = forward && int(p) < i
			}
			entries = append(entries, e)
		}
		at := map[string]int{}
		for n, line := range strings.Split(cli.Graph(entries, int(newest), false), "\n") {
			_, text, star := strings.Cut(line, "n")
			if !star {
				continue
			}
			id := "n" + text[:3]
			if _, twice := at[id]; twice {
				t.Fatalf("%s is drawn twice", id)
			}
			at[id] = n
		}
		if want := len(parents); newest == 0 && len(at) != want || newest > 0 && len(at) != min(want, int(newest)) {
			t.Fatalf("%d of %d entries are drawn", len(at), want)
		}
		for _, e := range entries {
			parent, drawn := at[e.ParentID]
			if child, also := at[e.ID]; forward && drawn && also && parent < child {
				t.Fatalf("%s is below its parent %s", e.ID, e.ParentID)
			}
		}
	})
}
