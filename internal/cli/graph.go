package cli

import (
	"bufio"
	"io"
	"slices"
	"strings"
	"time"
)

// draw writes the history as a drawing: newest first, one star for each entry, lines from children to parents.
func (l *lineage) draw(w io.Writer, age func(time.Time) string, colours bool) error {
	out := bufio.NewWriter(w)
	var g graph
	for i := range l.entries {
		e := &l.entries[i]
		if !l.shown[e.ID] {
			continue
		}
		line, more := l.describe(e, age)
		lines := append([]string{line}, more...)
		for i := range lines {
			if lines[i] = printable(lines[i], false); i > 0 {
				lines[i] = "  " + lines[i]
			}
			if colours && gone(e) {
				lines[i] = dimmed(lines[i])
			}
		}
		parent := ""
		if l.shown[e.ParentID] {
			parent = e.ParentID
		}
		for _, line := range g.next(e.ID, parent, lines) {
			out.WriteString(strings.TrimRight(line, " ") + "\n")
		}
	}
	return out.Flush()
}

func dimmed(s string) string { return "\x1b[2m" + s + "\x1b[0m" }

// graph draws entries one after another, children before their parents. Each of its lanes is a line that goes down to the
// entry whose id it holds; no two go to the same.
type graph struct {
	lanes []string
	ended bool // the last lane has just ended; what begins next in its place comes of something else
}

// next draws one entry. parent is "" for one that comes of nothing that is drawn.
func (g *graph) next(id, parent string, text []string) (out []string) {
	at := slices.Index(g.lanes, id)
	began := at < 0
	if began {
		at = len(g.lanes)
		g.lanes = append(g.lanes, id)
	}
	if g.ended && began {
		out = append(out, g.row(at, ' '))
	}
	g.ended = false
	out = append(out, g.row(at, '*')+text[0])
	below := '|'
	if parent == "" {
		below = ' '
	}
	for _, line := range text[1:] {
		out = append(out, g.row(at, below)+line)
	}
	other := slices.Index(g.lanes, parent)
	switch {
	case parent == "":
		if g.ended = at == len(g.lanes)-1; !g.ended {
			out = append(out, g.fold(at, at))
		}
		g.lanes = slices.Delete(g.lanes, at, at+1)
	case other >= 0 && other != at:
		left, right := min(at, other), max(at, other)
		out = append(out, g.fold(left, right))
		g.lanes[left] = parent
		g.lanes = slices.Delete(g.lanes, right, right+1)
	default:
		g.lanes[at] = parent
	}
	return out
}

// row is one line with all lanes, where lane at is drawn as c.
func (g *graph) row(at int, c rune) string {
	var b strings.Builder
	for i := range g.lanes {
		if i == at {
			b.WriteRune(c)
		} else {
			b.WriteByte('|')
		}
		b.WriteByte(' ')
	}
	return b.String()
}

// fold is the line on which lane right joins lane left, or ends when they are the same, and those further right move up.
func (g *graph) fold(left, right int) string {
	line := []byte(strings.Repeat("| ", len(g.lanes)))
	line[2*right] = ' '
	for i := right; i < len(g.lanes); i++ {
		if i > left {
			line[2*i], line[2*i-1] = ' ', '/'
		}
	}
	for i := left; i < right-1; i++ {
		line[2*i+1] = '_'
	}
	return string(line)
}
