package cli

import (
	"os"

	"github.com/spf13/cobra"
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
