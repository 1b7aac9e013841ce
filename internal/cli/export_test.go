package cli

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
)

// Root is the tree of commands.
func Root() *cobra.Command { return (&app{Options: Options{Getenv: os.Getenv}}).root() }

// Parsers, for fuzzing.
var (
	ParseMiB   = parseMiB
	SplitWords = splitWords
	HTTPProbe  = httpProbe
	Target     = target
	Printable  = printable
)

// Lineage answers what the log shows of entries.
func Lineage(entries []api.LineageEntry, boxes []api.Sandbox) (shown []string) {
	l := newLineage(entries, boxes)
	l.prune()
	for _, e := range l.listed() {
		shown = append(shown, e.ID)
	}
	return shown
}
