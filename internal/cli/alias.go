package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) aliasView() view[api.Alias] {
	return view[api.Alias]{
		id: func(l api.Alias) string { return l.Label },
		columns: []column[api.Alias]{
			{"alias", false, func(l api.Alias) string { return l.Label }},
			{"points at", false, func(l api.Alias) string { return l.TemplateID }},
			{"author", false, func(l api.Alias) string { return l.Author }},
			{"age", false, func(l api.Alias) string { return a.age(l.UpdatedAt) }},
			{"reason", false, func(l api.Alias) string { return l.Reason }},
		},
	}
}

func (a *app) aliasCommand() *cobra.Command {
	return newGroup("alias", "Give templates and snapshots names that can be pointed at another in one step", `  spore alias set python:3.13 tpl-5f1d7a84be3c90a1d2e4f607 --reason 'new release'
  spore alias history python`,
		a.aliasSet("set"), a.aliasList(), a.aliasInfo(), a.aliasRemove(), a.aliasHistory())
}

// aliasSet makes the command that points an alias at something, under a name.
func (a *app) aliasSet(name string) *cobra.Command {
	var story storyFlags
	path := "spore alias set"
	if name != "set" {
		path = "spore " + name
	}
	cmd := &cobra.Command{
		Use:   name + " NAME[:TAG] REF",
		Short: "Point an alias at a template or snapshot",
		Long: `Point an alias at a template or snapshot, given by id, name or alias. The switch is one step: whoever asks before it
gets the old one, whoever asks after it the new one. Without a tag it is ` + spore.DefaultTag + `.`,
		Example:           "  " + path + " python:3.13 tpl-5f1d7a84be3c90a1d2e4f607 --reason 'new release'\n  " + path + " python:stable python:3.13",
		Args:              exactly(2),
		ValidArgsFunction: a.complete(aliases, templates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := checkAlias(cmd, args[0]); err != nil {
				return err
			}
			set, err := c.PutAlias(cmd.Context(), args[0], api.AliasRequest{Template: args[1], Author: story.by(a, cmd), Reason: story.reason})
			if err != nil {
				return err
			}
			return a.aliasView().one(a, *set)
		}),
	}
	story.add(cmd)
	return cmd
}

func checkAlias(cmd *cobra.Command, alias string) error {
	if _, _, err := spore.ParseAlias("", alias); err != nil {
		return usage(cmd, err)
	}
	return nil
}

func (a *app) aliasList() *cobra.Command {
	var params api.ListAliasesParams
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List aliases, in the order of their names",
		Example: "  spore alias ls --template tpl-5f1d7a84be3c90a1d2e4f607",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			found, err := gather(c.ListAliases(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.aliasView().list(a, found)
		}),
	}
	cmd.Flags().StringVar(&params.Name, "name", "", "only tags of this name")
	cmd.Flags().StringVar(&params.Template, "template", "", "only those that point at this template or snapshot")
	cmd.RegisterFlagCompletionFunc("template", a.complete(templates))
	return cmd
}

func (a *app) aliasInfo() *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME[:TAG]",
		Aliases:           []string{"show"},
		Short:             "Show what an alias points at",
		Example:           "  spore alias info python:3.13",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(aliases, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := checkAlias(cmd, args[0]); err != nil {
				return err
			}
			l, err := c.GetAlias(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.aliasView().details(a, *l, []detail{
				{"alias", l.Label}, {"name", l.Name}, {"tag", l.Tag}, {"points at", l.TemplateID}, {"author", l.Author}, {"reason", l.Reason}, {"updated", stamp(l.UpdatedAt)},
			})
		}),
	}
}

func (a *app) aliasRemove() *cobra.Command {
	var story storyFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:               "rm NAME[:TAG]...",
		Short:             "Remove aliases; what they point at stays",
		Example:           "  spore alias rm --dry-run python:old\n  spore alias rm python:old --reason 'nobody uses it'",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(aliases),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, alias := range args {
				if err := checkAlias(cmd, alias); err != nil {
					return err
				}
			}
			var gone []api.Alias
			err := many(cmd.Context(), args, func(alias string) error {
				l, err := c.GetAlias(cmd.Context(), alias)
				if err == nil && !dryRun {
					err = c.DeleteAlias(cmd.Context(), alias, story.by(a, cmd), story.reason)
				}
				if err == nil {
					gone = append(gone, *l)
				}
				return err
			})
			if dryRun && len(gone) > 0 {
				fmt.Fprintln(a.Stderr, "would be removed:")
			}
			if len(gone) == 0 && err != nil {
				return err
			}
			return errors.Join(a.aliasView().list(a, gone), err)
		}),
	}
	story.add(cmd)
	dryRunFlag(cmd, &dryRun)
	return cmd
}

var aliasChangeView = view[api.AliasChange]{
	id: func(c api.AliasChange) string { return c.TemplateID },
	columns: []column[api.AliasChange]{
		{"seq", true, func(c api.AliasChange) string { return fmt.Sprint(c.Seq) }},
		{"at", false, func(c api.AliasChange) string { return c.At.UTC().Format(time.DateTime) }},
		{"alias", false, func(c api.AliasChange) string { return spore.Alias{Name: c.Name, Tag: c.Tag}.Label() }},
		{"pointed at", false, func(c api.AliasChange) string {
			if c.TemplateID == "" {
				return "removed"
			}
			return c.TemplateID
		}},
		{"author", false, func(c api.AliasChange) string { return c.Author }},
		{"reason", false, func(c api.AliasChange) string { return c.Reason }},
	},
}

func (a *app) aliasHistory() *cobra.Command {
	var all bool
	limit := 100
	cmd := &cobra.Command{
		Use:               "history NAME[:TAG]",
		Short:             "Tell what an alias pointed at, newest first",
		Example:           "  spore alias history python --all-tags",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(aliases, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := checkAlias(cmd, args[0]); err != nil {
				return err
			}
			if limit < 1 || limit > mostAtOnce {
				return usage(cmd, fmt.Errorf("--limit is between 1 and %d", mostAtOnce))
			}
			changes, err := c.AliasHistory(cmd.Context(), args[0], all, limit)
			if err != nil {
				return err
			}
			return aliasChangeView.list(a, changes)
		}),
	}
	cmd.Flags().BoolVar(&all, "all-tags", false, "of all tags of the name")
	cmd.Flags().IntVar(&limit, "limit", limit, "at most this many, the newest")
	return cmd
}
