package cli

import (
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
)

// Root is the tree of commands.
func Root() *cobra.Command { return (&app{Options: Options{Getenv: os.Getenv}}).root() }

// Parsers, for fuzzing.
var (
	ParseMiB           = parseMiB
	SplitWords         = splitWords
	HTTPProbe          = httpProbe
	Target             = target
	Printable          = printable
	ParseStorageLimits = parseStorageLimits
	ParseAge           = parseAge
	ParseQuota         = parseQuota
	LabelArgs          = labelArgs
	ParsePublish       = parsePublish
	ParsePlace         = parsePlace
)

// Lineage answers what the log shows of entries.
func Lineage(entries []api.LineageEntry, boxes []api.Sandbox) (shown []string) {
	l := newLineage(entries, boxes, nil)
	l.prune()
	for _, e := range l.listed() {
		shown = append(shown, e.ID)
	}
	return shown
}

// Graph draws entries; newest > 0 leaves only so many.
func Graph(entries []api.LineageEntry, newest int, colours bool) string {
	l := newLineage(entries, nil, nil)
	if newest > 0 {
		l.newest(newest)
	}
	var b strings.Builder
	if err := l.draw(&b, func(time.Time) string { return "1h" }, colours); err != nil {
		panic(err)
	}
	return b.String()
}
