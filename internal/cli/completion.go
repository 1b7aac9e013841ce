package cli

import (
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes spore's commands, ids and names in a shell",
		Example: `  spore completion bash > /etc/bash_completion.d/spore
  source <(spore completion zsh)`,
		Args:      exactly(1),
		ValidArgs: shells,
		RunE: a.run(func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			case "fish":
				return root.GenFishCompletion(a.Stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.Stdout)
			}
			return usage(cmd, spore.Invalidf("shell", "%q is none of %v", args[0], shells))
		}),
	}
}

// completePatience is how long a shell may wait for the server.
const completePatience = 2 * time.Second

// maxCompletions is as many as anyone wants to see after a tab.
const maxCompletions = 200

// completer answers words for an argument; each may have a description after a tab.
type completer func(ctx context.Context, c *client.Client) iter.Seq2[string, error]

// complete completes the arguments at the given positions, one completer for each; the last one goes on for all that follow.
func (a *app) complete(by ...completer) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		which := min(len(args), len(by)-1)
		if by[which] == nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completePatience)
		defer cancel()
		var found []string
		for word, err := range by[which](ctx, c) {
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			if plain, _, _ := strings.Cut(word, "\t"); !slices.Contains(args, plain) {
				found = append(found, word)
			}
			if len(found) >= maxCompletions {
				break
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// nothing completes nothing.
func nothing(context.Context, *client.Client) iter.Seq2[string, error] {
	return func(func(string, error) bool) {}
}

// each answers one or more words for each item of a list.
func each[T any](items iter.Seq2[T, error], describe func(T) []string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for item, err := range items {
			if err != nil {
				yield("", err)
				return
			}
			for _, word := range describe(item) {
				if !yield(word, nil) {
					return
				}
			}
		}
	}
}

func described(word, about string) string {
	return printable(word, false) + "\t" + printable(about, false)
}

func templateWords(t api.Template) []string {
	about := string(t.Kind) + ", " + string(t.Status)
	if t.Name == "" {
		return []string{described(t.ID, about)}
	}
	return []string{described(t.Name, about), described(t.ID, about)}
}

// templates completes whatever sandboxes can start from, aliases too.
func templates(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return both(definitions, aliases)(ctx, c)
}

func definitions(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListTemplates(ctx, api.ListTemplatesParams{}), templateWords)
}

func onlyTemplates(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListTemplates(ctx, api.ListTemplatesParams{Kind: spore.KindTemplate}), templateWords)
}

func snapshots(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListSnapshots(ctx, api.ListSnapshotsParams{}), templateWords)
}

func sandboxes(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListSandboxes(ctx, api.ListSandboxesParams{}), func(s api.Sandbox) []string {
		return []string{described(s.ID, string(s.State))}
	})
}

func jobs(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListJobs(ctx, api.ListJobsParams{}), func(j api.Job) []string {
		return []string{described(j.ID, string(j.Operation)+", "+string(j.Status))}
	})
}

func nodes(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return listed(func() ([]api.Node, error) { return c.ListNodes(ctx, false) }, func(n api.Node) []string {
		return []string{described(n.ID, nodeState(n))}
	})
}

// nodeLabels completes the labels that nodes have.
func nodeLabels(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		seen := map[string]bool{}
		for word, err := range listed(func() ([]api.Node, error) { return c.ListNodes(ctx, false) }, func(n api.Node) []string {
			return strings.Split(pairs(n.Labels), ",")
		}) {
			if err != nil || word != "" && !seen[word] {
				seen[word] = true
				if !yield(printable(word, false), err) {
					return
				}
			}
		}
	}
}

func aliases(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListAliases(ctx, api.ListAliasesParams{}), func(a api.Alias) []string {
		return []string{described(a.Label, a.TemplateID)}
	})
}

func artifacts(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return each(c.ListArtifacts(ctx, api.ListArtifactsParams{}), func(a api.Artifact) []string {
		return []string{described(a.ID, a.Image.Reference+", "+string(a.Status))}
	})
}

// listed is each for a list that comes in one answer.
func listed[T any](ask func() ([]T, error), describe func(T) []string) iter.Seq2[string, error] {
	return each(func(yield func(T, error) bool) {
		items, err := ask()
		if err != nil {
			var none T
			yield(none, err)
			return
		}
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}, describe)
}

func kernels(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
	return listed(func() ([]api.Kernel, error) { return c.ListKernels(ctx) }, func(k api.Kernel) []string {
		return []string{described(k.ID, k.KernelVersion)}
	})
}

// both answers the words of one completer and then those of another.
func both(first, second completer) completer {
	return func(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
		return func(yield func(string, error) bool) {
			for _, by := range []completer{first, second} {
				for word, err := range by(ctx, c) {
					if !yield(word, err) || err != nil {
						return
					}
				}
			}
		}
	}
}
