package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) lineageView() view[api.LineageEntry] {
	return view[api.LineageEntry]{
		id: func(e api.LineageEntry) string { return e.ID },
		columns: []column[api.LineageEntry]{
			{"id", false, func(e api.LineageEntry) string { return e.ID }},
			{"name", false, func(e api.LineageEntry) string { return e.Name }},
			{"kind", false, func(e api.LineageEntry) string { return string(e.Kind) }},
			{"status", false, func(e api.LineageEntry) string { return string(e.Status) }},
			{"parent", false, func(e api.LineageEntry) string { return e.ParentID }},
			{"sandbox", true, func(e api.LineageEntry) string { return e.OriginSandbox }},
			{"ephemeral", true, func(e api.LineageEntry) string { return yes(e.Ephemeral) }},
			{"labels", true, func(e api.LineageEntry) string { return pairs(e.Labels) }},
			{"aliases", true, func(e api.LineageEntry) string { return strings.Join(e.Aliases, ",") }},
			{"author", false, func(e api.LineageEntry) string { return e.Author }},
			{"age", false, func(e api.LineageEntry) string { return a.age(e.CreatedAt) }},
			{"reason", false, func(e api.LineageEntry) string { return e.Reason }},
		},
	}
}

// log makes the command that tells histories, under a path.
func (a *app) log(path string) *cobra.Command {
	var graph, all bool
	var limit int
	cmd := &cobra.Command{
		Use:   "log [REF]",
		Short: "Show which template or snapshot came of which, by whom and why",
		Long: `Show templates and snapshots with what they came of, newest first; with --graph as a drawing, with the aliases that point
at them and the sandboxes that stand on them. REF, a template, snapshot, alias or sandbox, leaves only its ancestors and
descendants. What was deleted, or failed to be made, is shown where something living came of it, and with --all
everywhere.`,
		Example:           "  " + path + " --graph\n  " + path + " --graph before-upgrade",
		Args:              between(0, 1),
		ValidArgsFunction: a.complete(both(templates, sandboxes), nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if limit < 0 {
				return usage(cmd, errors.New("--limit cannot be negative"))
			}
			var l *lineage
			err := a.waiting(cmd.Context(), "reading", func(ctx context.Context) (err error) {
				l, err = readLineage(ctx, c, args)
				return err
			})
			if err != nil {
				return err
			}
			if l.omitted && !a.quiet {
				fmt.Fprintln(a.Stderr, "there is more than the server tells of one")
			}
			if !all {
				l.prune()
			}
			if limit > 0 {
				l.newest(limit)
			}
			if graph && !a.quiet && a.output != "json" {
				return l.draw(a.Stdout, a.age, a.colours())
			}
			return a.lineageView().list(a, l.listed())
		}),
	}
	cmd.Flags().BoolVar(&graph, "graph", false, "draw it")
	cmd.Flags().BoolVar(&all, "all", false, "what was deleted or failed, too")
	cmd.Flags().IntVarP(&limit, "limit", "n", 0, "only the newest so many; 0 is all")
	return cmd
}

// colours says whether the output may be coloured.
func (a *app) colours() bool {
	return isTerminal(a.Stdout) && a.Getenv("TERM") != "dumb" && a.Getenv("NO_COLOR") == ""
}

// lineage is who descends from whom. Parents that are not known any more make their children roots.
type lineage struct {
	entries  []api.LineageEntry // newest first, and children always before their parents
	byID     map[string]*api.LineageEntry
	children map[string][]string
	boxes    map[string][]api.Sandbox // on each entry
	shown    map[string]bool
	asked    string // id of the one that was asked for
	omitted  bool   // the server did not tell everything
}

// readLineage asks for everything, or for what is related to one thing.
func readLineage(ctx context.Context, c *client.Client, refs []string) (*lineage, error) {
	var entries []api.LineageEntry
	var self string
	var omitted bool
	var err error
	if len(refs) == 0 {
		entries, err = gather(c.ListLineage(ctx))
	} else {
		var near *api.Lineage
		if near, err = relatives(ctx, c, refs[0]); err == nil {
			entries = append(append(near.Ancestors, near.Self), near.Descendants...)
			self, omitted = near.Self.ID, near.Omitted
		}
	}
	if err != nil {
		return nil, err
	}
	boxes, err := gather(c.ListSandboxes(ctx, api.ListSandboxesParams{Limit: 1000}))
	if err != nil {
		return nil, err
	}
	labels, err := gather(c.ListAliases(ctx, api.ListAliasesParams{Limit: 1000}))
	if err != nil {
		return nil, err
	}
	l := newLineage(entries, boxes, labels)
	l.asked, l.omitted = self, omitted
	return l, nil
}

// relatives asks for the history of a template or snapshot, or of what a sandbox stands on.
func relatives(ctx context.Context, c *client.Client, ref string) (*api.Lineage, error) {
	both := client.LineageOptions{Ancestors: true, Descendants: true}
	near, err := c.Lineage(ctx, ref, both)
	if spore.CodeOf(err) != spore.CodeNotFound {
		return near, err
	}
	s, boxErr := c.GetSandbox(ctx, ref)
	switch {
	case spore.CodeOf(boxErr) == spore.CodeNotFound:
		return nil, err
	case boxErr != nil:
		return nil, boxErr
	}
	return c.Lineage(ctx, s.TemplateID, both)
}

func newLineage(entries []api.LineageEntry, boxes []api.Sandbox, labels []api.Alias) *lineage {
	l := &lineage{
		entries: entries, byID: map[string]*api.LineageEntry{}, children: map[string][]string{},
		boxes: map[string][]api.Sandbox{}, shown: map[string]bool{},
	}
	l.sort()
	for i := range l.entries {
		l.byID[l.entries[i].ID] = &l.entries[i]
		l.shown[l.entries[i].ID] = true
	}
	for _, e := range l.entries {
		if l.byID[e.ParentID] != nil {
			l.children[e.ParentID] = append(l.children[e.ParentID], e.ID)
		}
	}
	for _, b := range boxes {
		l.boxes[b.TemplateID] = append(l.boxes[b.TemplateID], b)
	}
	for _, one := range labels {
		if e := l.byID[one.TemplateID]; e != nil && !slices.Contains(e.Aliases, one.Label) {
			e.Aliases = append(e.Aliases, one.Label)
		}
	}
	return l
}

// sort puts the newest first, but children always before their parents, whatever the clocks of those who made them said.
func (l *lineage) sort() {
	slices.SortStableFunc(l.entries, func(a, b api.LineageEntry) int { return b.CreatedAt.Compare(a.CreatedAt) })
	at := make(map[string]int, len(l.entries))
	for i, e := range l.entries {
		at[e.ID] = i
	}
	waiting := make([]int, len(l.entries)) // children that are not placed yet
	for _, e := range l.entries {
		if p, ok := at[e.ParentID]; ok && e.ParentID != e.ID {
			waiting[p]++
		}
	}
	sorted := make([]api.LineageEntry, 0, len(l.entries))
	placed := make([]bool, len(l.entries))
	place := func(i int) {
		for !placed[i] && waiting[i] == 0 {
			placed[i] = true
			sorted = append(sorted, l.entries[i])
			parent, known := at[l.entries[i].ParentID]
			if !known {
				return
			}
			if waiting[parent]--; parent > i {
				return // its turn comes
			}
			i = parent
		}
	}
	for i := range l.entries {
		place(i)
	}
	for i := range l.entries { // on a cycle, which only damage could make
		if !placed[i] {
			waiting[i] = 0
			place(i)
		}
	}
	l.entries = sorted
}

// prune hides what was deleted, or never came to be, and has nothing living on it.
func (l *lineage) prune() {
	for _, e := range l.entries {
		if !gone(&e) || len(l.boxes[e.ID]) > 0 || e.ID == l.asked {
			continue
		}
		l.shown[e.ID] = false
		for _, child := range l.children[e.ID] {
			l.shown[e.ID] = l.shown[e.ID] || l.shown[child]
		}
	}
}

// gone says whether nothing can start from an entry, now and later.
func gone(e *api.LineageEntry) bool {
	return e.Status == spore.TemplateDeleted || e.Status == spore.TemplateDeleting || e.Status == spore.TemplateFailed
}

// newest hides all but the newest so many of those that are shown.
func (l *lineage) newest(n int) {
	for _, e := range l.entries {
		if l.shown[e.ID] {
			l.shown[e.ID] = n > 0
			n--
		}
	}
}

func (l *lineage) listed() []api.LineageEntry {
	out := []api.LineageEntry{}
	for _, e := range l.entries {
		if l.shown[e.ID] {
			out = append(out, e)
		}
	}
	return out
}

// describe is what the drawing says of an entry: one line, and more about who and why.
func (l *lineage) describe(e *api.LineageEntry, age func(time.Time) string) (line string, more []string) {
	var names []string
	if e.Name != "" {
		names = append(names, e.Name)
	}
	parts := []string{e.ID}
	if names = append(names, e.Aliases...); len(names) > 0 {
		parts = append(parts, "("+strings.Join(names, ", ")+")")
	}
	parts = append(parts, string(e.Kind)+" "+string(e.Status)+", "+age(e.CreatedAt))
	if e.OriginSandbox != "" {
		parts = append(parts, "of "+e.OriginSandbox)
	}
	if len(e.Labels) > 0 {
		parts = append(parts, "["+pairs(e.Labels)+"]")
	}
	switch {
	case e.Author != "" && e.Reason != "":
		more = append(more, "by "+e.Author+": "+e.Reason)
	case e.Author != "":
		more = append(more, "by "+e.Author)
	case e.Reason != "":
		more = append(more, e.Reason)
	}
	for _, b := range l.boxes[e.ID] {
		more = append(more, "["+b.ID+"] sandbox "+string(b.State)+", "+age(b.CreatedAt))
	}
	return strings.Join(parts, " "), more
}
