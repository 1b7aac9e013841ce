package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// column is one column of a table, or one line of the view of a single thing.
type column[T any] struct {
	head  string
	wide  bool // shown with -o wide only
	value func(T) string
}

// view says how a kind of thing is printed.
type view[T any] struct {
	id      func(T) string
	columns []column[T]
}

// list prints things as -o and -q want them.
func (v view[T]) list(a *app, things []T) error {
	switch {
	case a.quiet:
		for _, t := range things {
			fmt.Fprintln(a.Stdout, v.id(t))
		}
		return nil
	case a.output == "json":
		if things == nil {
			things = []T{}
		}
		return a.json(things)
	}
	var head []string
	for _, c := range v.columns {
		if !c.wide || a.output == "wide" {
			head = append(head, c.head)
		}
	}
	rows := make([][]string, 0, len(things))
	for _, t := range things {
		var row []string
		for _, c := range v.columns {
			if !c.wide || a.output == "wide" {
				row = append(row, c.value(t))
			}
		}
		rows = append(rows, row)
	}
	return writeTable(a.Stdout, head, rows)
}

// one prints a single thing.
func (v view[T]) one(a *app, thing T) error {
	if a.quiet || a.output == "json" {
		if a.quiet {
			return v.list(a, []T{thing})
		}
		return a.json(thing)
	}
	return v.list(a, []T{thing})
}

// details prints a single thing with one line for each field, or as -o and -q want it.
func (v view[T]) details(a *app, thing T, lines []detail) error {
	if a.quiet || a.output == "json" {
		return v.one(a, thing)
	}
	return writeDetails(a.Stdout, lines)
}

// detail is one line of the view of a single thing; one without a value is left out.
type detail struct{ name, value string }

func writeDetails(w io.Writer, lines []detail) error {
	width := 0
	for _, l := range lines {
		if l.value != "" {
			width = max(width, len(l.name))
		}
	}
	for _, l := range lines {
		if l.value == "" {
			continue
		}
		value := strings.ReplaceAll(printable(l.value, true), "\n", "\n"+strings.Repeat(" ", width+3))
		if _, err := fmt.Fprintf(w, "%-*s  %s\n", width+1, l.name+":", value); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) json(v any) error {
	enc := json.NewEncoder(a.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// plainTable has no lines: columns are found by the two spaces between them.
var plainTable = table.Style{
	Name:    "plain",
	Box:     table.BoxStyle{PaddingRight: "  "},
	Format:  table.FormatOptions{Header: text.FormatUpper},
	Options: table.Options{},
}

func writeTable(w io.Writer, head []string, rows [][]string) error {
	t := table.NewWriter()
	t.SetStyle(plainTable)
	t.AppendHeader(cells(head))
	for _, r := range rows {
		for i, c := range r {
			if r[i] = printable(c, false); c == "" {
				r[i] = "-"
			}
		}
		t.AppendRow(cells(r))
	}
	for line := range strings.Lines(t.Render()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func cells(values []string) table.Row {
	row := make(table.Row, len(values))
	for i, v := range values {
		row[i] = v
	}
	return row
}

// printable escapes control characters, so that what a guest or an image calls itself cannot speak to the terminal.
func printable(s string, lines bool) string {
	clean := func(r rune) bool {
		return !unicode.IsControl(r) && r != '\u2028' && r != '\u2029' && r != unicode.ReplacementChar || lines && r == '\n'
	}
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if clean(r) {
			b.WriteRune(r)
			continue
		}
		q := fmt.Sprintf("%q", string(r))
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

func contains(text, part string) bool { return part == "" || strings.Contains(text, part) }

// size is a number of bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func mib(n int) string { return humanize.IBytes(uint64(max(n, 0)) << 20) }

// age is how long ago t was.
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(a.Now().Sub(t))
}

// left is how long it is until t.
func (a *app) left(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if d := t.Sub(a.Now()); d > 0 {
		return span(d)
	}
	return "now"
}

// span is a length of time in its two largest units at most.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		h, m := int(d.Hours()), int(d.Minutes())%60
		if m == 0 || h >= 10 {
			return fmt.Sprintf("%dh", h)
		}
		return fmt.Sprintf("%dh%dm", h, m)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// pairs is a map as k=v, in order.
func pairs(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}

// commandLine is words as one would type them.
func commandLine(words ...string) string {
	out := make([]string, len(words))
	for i, w := range words {
		if out[i] = w; w == "" || strings.ContainsAny(w, " \t\n\"'\\$`*?[]{}()<>|&;#~") {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// jsonLine prints one value on one line, for streams of values.
func (a *app) jsonLine(v any) error {
	enc := json.NewEncoder(a.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// gather reads a list to its end.
func gather[T any](items iter.Seq2[T, error]) ([]T, error) {
	var out []T
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		out = append(out, item)
	}
	return out, nil
}

// splitList reads a flag that takes several words separated by commas.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
