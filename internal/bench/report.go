package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
)

// Format is the version of the JSON that Report writes.
const Format = 1

// Report is one run of the benchmark.
type Report struct {
	Format  int       `json:"format"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Quick   bool      `json:"quick"` // a short run: too few repetitions to judge by
	Scope   Scope     `json:"scope"`
	Rows    []*Row    `json:"rows"`
	// Mishaps are failures outside of what is measured, such as in warming up, after which the same was tried again.
	Mishaps []string `json:"mishaps,omitempty"`
}

// Verdicts of a row.
const (
	Met    = "met"
	Missed = "missed"
	Failed = "failed" // nothing could be measured, or what must not fail failed
)

// Row is one line of the table: one goal, and what was measured for it.
type Row struct {
	Name string `json:"name"` // to choose it by
	What string `json:"what"`
	Goal string `json:"goal"`

	Measured float64 `json:"measured"` // in the terms of the goal
	Limit    float64 `json:"limit"`
	AtLeast  bool    `json:"atLeast"` // the measured value is to be at least the limit, rather than at most
	Unit     string  `json:"unit"`    // of both: "x", "MiB", "failures"
	Verdict  string  `json:"verdict"`
	Note     string  `json:"note,omitempty"`

	Series []*Series `json:"series"`
}

// series starts a new series of the row.
func (r *Row) series(name, unit string) *Series {
	s := &Series{Name: name, Unit: unit}
	r.Series = append(r.Series, s)
	return s
}

// judge settles the row's series and says whether its goal is met. measure computes the row's figure from them; it is
// not called when a series has no values. strict rows fail with any failure, the others only when nothing is left.
func (r *Row) judge(strict bool, measure func() float64) {
	failures := 0
	empty := len(r.Series) == 0
	for _, s := range r.Series {
		s.settle()
		failures += len(s.Failures)
		empty = empty || s.N == 0
	}
	if empty {
		r.Verdict = Failed
		return
	}
	r.Measured = measure()
	switch {
	case strict && failures > 0:
		r.Verdict = Failed
	case r.AtLeast && r.Measured >= r.Limit, !r.AtLeast && r.Measured <= r.Limit:
		r.Verdict = Met
	default:
		r.Verdict = Missed
	}
}

// failures counts the runs that came to nothing, over all series.
func (r *Row) failures() (n int) {
	for _, s := range r.Series {
		n += len(s.Failures)
	}
	return n
}

// Print writes the report as a table for people.
func (r *Report) Print(w io.Writer) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"row", "what", "n", "fail", "p50", "p90", "p99", "measured", "goal", "verdict"})
	for i, row := range r.Rows {
		if i > 0 {
			t.AppendSeparator()
		}
		t.AppendRow(table.Row{row.Name, row.What, "", row.failures(), "", "", "", figure(row.Measured, row.Unit), row.Goal, row.Verdict})
		for _, s := range row.Series {
			t.AppendRow(table.Row{"", "  " + s.Name, s.N, len(s.Failures), figure(s.P50, s.Unit), figure(s.P90, s.Unit), figure(s.P99, s.Unit), "", "", ""})
		}
	}
	var b strings.Builder
	b.WriteString(t.Render() + "\n")
	for _, row := range r.Rows {
		if row.Note != "" {
			fmt.Fprintf(&b, "%s: %s\n", row.Name, row.Note)
		}
		for _, s := range row.Series {
			for _, f := range s.Failures {
				fmt.Fprintf(&b, "%s, %s failed: %s\n", row.Name, s.Name, f)
			}
		}
	}
	for _, m := range r.Mishaps {
		fmt.Fprintf(&b, "Outside of the rows, tried again: %s\n", m)
	}
	b.WriteString(r.Scope.String())
	if r.Quick {
		b.WriteString("This was a quick run: too few repetitions to judge by.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// figure prints a value with its unit, at a precision that fits.
func figure(v float64, unit string) string {
	switch unit {
	case bytesUnit:
		return strconv.FormatFloat(v/(1<<20), 'f', 2, 64) + " MiB"
	case kibibytes:
		return strconv.FormatFloat(v/1024, 'f', 1, 64) + " MiB"
	case milliseconds:
		return strconv.FormatFloat(v, 'f', 1, 64) + " ms"
	case "failures":
		return strconv.FormatFloat(v, 'f', 0, 64) + " failures"
	}
	return strconv.FormatFloat(v, 'f', 2, 64) + " " + unit
}

// Save writes the report as JSON into dir, in a file named by date and class of host, and answers its path. An earlier
// report of the same name stays, and the newer one gets a number.
func (r *Report) Save(dir string) (string, error) {
	stem := r.Started.UTC().Format(time.DateOnly) + "-" + r.Scope.Class()
	if r.Quick {
		stem += "-quick"
	}
	return save(filepath.Join(dir, stem), r)
}

// save writes a report into a new file whose name begins with stem, and answers its path.
func save(stem string, report any) (string, error) {
	raw, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(stem), 0o755); err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		path := stem + ".json"
		if n > 1 {
			path = stem + "-" + strconv.Itoa(n) + ".json"
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = f.Write(append(raw, '\n'))
		return path, errors.Join(err, f.Close())
	}
}
