package cli

import (
	"fmt"
	"io"
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
			{"age", false, func(e api.LineageEntry) string { return a.age(e.CreatedAt) }},
		},
	}
}

func (a *app) snapshotLog() *cobra.Command {
	var graph, all bool
	cmd := &cobra.Command{
		Use:   "log [REF]",
		Short: "Show which snapshot came of which",
		Long: `Show templates and snapshots with what they came of, newest first; with --graph as a tree, with the sandboxes
that stand on them. REF, a template, snapshot or sandbox, leaves only its ancestors and descendants. What was
deleted, or failed to be made, is shown where something living came of it, and with --all everywhere.`,
		Example:           "  spore snapshot log --graph\n  spore snapshot log --graph before-upgrade",
		Args:              between(0, 1),
		ValidArgsFunction: a.complete(both(templates, sandboxes), nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			entries, err := gather(c.ListLineage(cmd.Context()))
			if err != nil {
				return err
			}
			boxes, err := gather(c.ListSandboxes(cmd.Context(), api.ListSandboxesParams{Limit: 1000}))
			if err != nil {
				return err
			}
			l := newLineage(entries, boxes)
			if !all {
				l.prune()
			}
			if len(args) == 1 {
				if err := l.around(args[0]); err != nil {
					return err
				}
			}
			if graph && !a.quiet && a.output != "json" {
				return l.draw(a.Stdout, a.age)
			}
			return a.lineageView().list(a, l.listed())
		}),
	}
	cmd.Flags().BoolVar(&graph, "graph", false, "draw a tree")
	cmd.Flags().BoolVar(&all, "all", false, "what was deleted or failed, too")
	return cmd
}

// lineage is who descends from whom. Parents that are not known any more make their children roots.
type lineage struct {
	entries  []api.LineageEntry // newest first
	byID     map[string]*api.LineageEntry
	children map[string][]string      // oldest first
	boxes    map[string][]api.Sandbox // on each entry
	shown    map[string]bool
}

func newLineage(entries []api.LineageEntry, boxes []api.Sandbox) *lineage {
	l := &lineage{
		entries: entries, byID: map[string]*api.LineageEntry{}, children: map[string][]string{},
		boxes: map[string][]api.Sandbox{}, shown: map[string]bool{},
	}
	for i := range entries {
		l.byID[entries[i].ID] = &entries[i]
		l.shown[entries[i].ID] = true
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if e := entries[i]; l.byID[e.ParentID] != nil && !l.descends(e.ParentID, e.ID) {
			l.children[e.ParentID] = append(l.children[e.ParentID], e.ID)
		}
	}
	for _, b := range boxes {
		l.boxes[b.TemplateID] = append(l.boxes[b.TemplateID], b)
	}
	return l
}

// descends says whether id is, or comes of, ancestor. It ends even on a cycle, which only damage could make.
func (l *lineage) descends(id, ancestor string) bool {
	for range len(l.byID) + 1 {
		if id == ancestor {
			return true
		}
		e := l.byID[id]
		if e == nil {
			return false
		}
		id = e.ParentID
	}
	return true
}

// prune hides what was deleted, or never came to be, and has nothing living on it.
func (l *lineage) prune() {
	// A child is always younger than its parent, so newest first sees children before parents.
	for _, e := range l.entries {
		gone := e.Status == spore.TemplateDeleted || e.Status == spore.TemplateDeleting || e.Status == spore.TemplateFailed
		if !gone || len(l.boxes[e.ID]) > 0 {
			continue
		}
		l.shown[e.ID] = false
		for _, child := range l.children[e.ID] {
			l.shown[e.ID] = l.shown[e.ID] || l.shown[child]
		}
	}
}

// around hides all but the ancestors and descendants of ref.
func (l *lineage) around(ref string) error {
	id := ""
	for _, e := range l.entries {
		if e.ID == ref || e.Name == ref && (id == "" || l.byID[id].Status == spore.TemplateDeleted) {
			id = e.ID
		}
	}
	for template, boxes := range l.boxes {
		for _, b := range boxes {
			if b.ID == ref {
				id = template
			}
		}
	}
	if id == "" {
		return spore.Errorf(spore.CodeNotFound, "there is no template, snapshot or sandbox %q", ref)
	}
	for other := range l.shown {
		if l.shown[other] && !l.descends(other, id) && !l.descends(id, other) {
			l.shown[other] = false
		}
	}
	return nil
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

// node is one line of the drawing and the lines that hang from it.
type node struct {
	text string
	id   string // of an entry that may have more below it
}

// draw writes the tree, oldest root first. Long lineages are deep, so it keeps a stack of its own.
func (l *lineage) draw(w io.Writer, age func(time.Time) string) error {
	type frame struct {
		nodes  []node
		prefix string
	}
	var roots []node
	for i := len(l.entries) - 1; i >= 0; i-- {
		if e := &l.entries[i]; l.shown[e.ID] && !l.hasShownParent(e) {
			roots = append(roots, node{l.describe(e, age), e.ID})
		}
	}
	for _, root := range roots {
		if _, err := fmt.Fprintln(w, root.text); err != nil {
			return err
		}
		stack := []frame{{nodes: l.below(root.id, age)}}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.nodes) == 0 {
				stack = stack[:len(stack)-1]
				continue
			}
			n := top.nodes[0]
			top.nodes = top.nodes[1:]
			branch, below := "├── ", "│   "
			if len(top.nodes) == 0 {
				branch, below = "└── ", "    "
			}
			if _, err := fmt.Fprintln(w, top.prefix+branch+n.text); err != nil {
				return err
			}
			if n.id != "" {
				stack = append(stack, frame{l.below(n.id, age), top.prefix + below})
			}
		}
	}
	return nil
}

func (l *lineage) hasShownParent(e *api.LineageEntry) bool {
	for _, sibling := range l.children[e.ParentID] {
		if sibling == e.ID {
			return l.shown[e.ParentID]
		}
	}
	return false
}

func (l *lineage) below(id string, age func(time.Time) string) []node {
	var out []node
	for _, child := range l.children[id] {
		if l.shown[child] {
			out = append(out, node{l.describe(l.byID[child], age), child})
		}
	}
	for _, b := range l.boxes[id] {
		out = append(out, node{text: "[" + b.ID + "] sandbox " + string(b.State) + ", " + age(b.CreatedAt)})
	}
	return out
}

func (l *lineage) describe(e *api.LineageEntry, age func(time.Time) string) string {
	parts := []string{e.ID}
	if e.Name != "" {
		parts = []string{e.Name, "(" + e.ID + ")"}
	}
	parts = append(parts, string(e.Kind)+" "+string(e.Status)+", "+age(e.CreatedAt))
	if e.OriginSandbox != "" {
		parts = append(parts, "of "+e.OriginSandbox)
	}
	return printable(strings.Join(parts, " "), false)
}
