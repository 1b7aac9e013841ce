package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

var changeView = view[api.FileChange]{
	id: func(f api.FileChange) string { return f.Path },
	columns: []column[api.FileChange]{
		{"change", false, func(f api.FileChange) string { return string(f.Kind) }},
		{"before", false, func(f api.FileChange) string { return fileSize(f, spore.ChangeAdded, f.SizeFrom) }},
		{"after", false, func(f api.FileChange) string { return fileSize(f, spore.ChangeRemoved, f.SizeTo) }},
		{"path", false, func(f api.FileChange) string {
			if f.Directory {
				return f.Path + "/"
			}
			return f.Path
		}},
	},
}

// fileSize is a size of a file that differs, when it was there at that time and is no directory.
func fileSize(f api.FileChange, absent spore.ChangeKind, bytes int64) string {
	if f.Kind == absent || f.Directory {
		return ""
	}
	return size(bytes)
}

func (a *app) diffCommand() *cobra.Command {
	limit := 1000
	cmd := &cobra.Command{
		Use:   "diff FROM TO",
		Short: "Say what differs between two templates or snapshots",
		Long: `Say what differs between two templates or snapshots: files that were added, removed or modified, and how many bytes of
memory and of the disk are others.`,
		Example:           "  spore diff before-upgrade after-upgrade\n  spore diff python python-numpy -o json",
		Args:              exactly(2),
		ValidArgsFunction: a.complete(templates, templates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if limit < 1 || limit > mostChanges {
				return usage(cmd, fmt.Errorf("--limit is between 1 and %d", mostChanges))
			}
			var d *api.Diff
			err := a.waiting(cmd.Context(), "comparing", func(ctx context.Context) (err error) {
				d, err = c.Diff(ctx, args[0], args[1], limit)
				return err
			})
			if err != nil {
				return err
			}
			return a.printDiff(d)
		}),
	}
	cmd.Flags().IntVar(&limit, "limit", limit, "at most this many files")
	return cmd
}

// mostChanges is how many files one answer may name.
const mostChanges = 10_000

func (a *app) printDiff(d *api.Diff) error {
	if a.output == "json" && !a.quiet {
		return a.json(d)
	}
	if !a.quiet {
		counts := map[spore.ChangeKind]int{}
		for _, f := range d.Files {
			counts[f.Kind]++
		}
		files := fmt.Sprintf("%d added, %d removed, %d modified", counts[spore.ChangeAdded], counts[spore.ChangeRemoved], counts[spore.ChangeModified])
		if d.FilesOmitted > 0 {
			files += fmt.Sprintf(", and %d more that are not shown", d.FilesOmitted)
		}
		if err := writeDetails(a.Stdout, []detail{
			{"from", d.From}, {"to", d.To}, {"files", files}, {"memory", size(d.MemoryChangedBytes) + " of " + size(d.MemoryTotalBytes) + " changed"},
			{"disk", size(d.DiskChangedBytes) + " changed"},
		}); err != nil || len(d.Files) == 0 {
			return err
		}
		fmt.Fprintln(a.Stdout)
	}
	return changeView.list(a, d.Files)
}
