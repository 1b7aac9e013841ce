package cli

import (
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// storyFlags say who asks for something, and why.
type storyFlags struct{ author, reason string }

func (f *storyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.author, "author", "", "who asks for it (default $USER)")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, in a sentence; it is shown in the history")
}

// by is the author: the user of this machine unless another one was named.
func (f *storyFlags) by(a *app, cmd *cobra.Command) string {
	if cmd.Flags().Changed("author") {
		return f.author
	}
	return a.Getenv("USER")
}

// definitionFlags are what may be said of any template or snapshot that is being made.
type definitionFlags struct {
	storyFlags
	displayName string
	retain      bool
	labels      mapFlag
}

func (f *definitionFlags) add(cmd *cobra.Command) {
	f.storyFlags.add(cmd)
	cmd.Flags().StringVar(&f.displayName, "display-name", "", "a name for people; need not be unique")
	cmd.Flags().BoolVar(&f.retain, "retain", false, "no policy may remove it")
	cmd.Flags().Var(&f.labels, "label", "label to attach: KEY=VALUE")
}

// placeFlags say where a template wants to be.
type placeFlags struct {
	nodes    []string
	selector mapFlag
	min, max int
	pin      bool
	policy   policyFlag
}

func (f *placeFlags) add(cmd *cobra.Command, a *app) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.nodes, "node", nil, "only on this node; may be given several times (default any)")
	flags.Var(&f.selector, "selector", "only on nodes with this label: KEY=VALUE")
	flags.IntVar(&f.min, "replicas-min", 0, "with fewer replicas than this it is PARTIALLY_READY")
	flags.IntVar(&f.max, "replicas-max", 0, "at most this many replicas; 0 is no limit")
	flags.BoolVar(&f.pin, "pin", false, "keep it on every node that fits, new ones too, before anything starts from it")
	flags.Var(&f.policy, "compat-policy", "which components must agree with a node's: strict (all) or guest-only")
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	cmd.RegisterFlagCompletionFunc("selector", a.complete(nodeLabels))
	cmd.RegisterFlagCompletionFunc("compat-policy", words("strict", "guest-only"))
}

func (f *placeFlags) replicas() api.ReplicaPolicy {
	return api.ReplicaPolicy{Nodes: f.nodes, Selector: f.selector.values, Min: f.min, Max: f.max, Pinned: f.pin}
}

func (f *placeFlags) check(cmd *cobra.Command) error {
	switch {
	case f.min < 0 || f.max < 0:
		return usage(cmd, errors.New("a number of replicas cannot be negative"))
	case f.max > 0 && f.max < f.min:
		return usage(cmd, errors.New("--replicas-max is below --replicas-min"))
	}
	return nil
}

// policyFlag is a compatibility policy, as people write it.
type policyFlag struct{ policy spore.CompatPolicy }

func (f *policyFlag) String() string {
	return strings.ToLower(strings.ReplaceAll(string(f.policy), "_", "-"))
}
func (f *policyFlag) Type() string { return "policy" }

func (f *policyFlag) Set(s string) error {
	p, err := spore.ParseCompatPolicy("", strings.ReplaceAll(s, "-", "_"))
	if err != nil || s == "" {
		return errors.New("write strict or guest-only")
	}
	f.policy = p
	return nil
}

// constant reads a word as the API spells its constants.
func constant[T ~string](s string) T { return T(strings.ToUpper(strings.ReplaceAll(s, "-", "_"))) }

// constants reads several of them, separated by commas.
func constants[T ~string](s string) []T {
	var out []T
	for _, word := range splitList(s) {
		out = append(out, constant[T](word))
	}
	return out
}

// filterFlags select templates and snapshots from a list.
type filterFlags struct {
	id, name, status, sandbox, parent string
	labels                            []string
	all                               bool
}

var templateStatuses = []spore.TemplateStatus{
	spore.TemplatePending, spore.TemplateCreating, spore.TemplateReady, spore.TemplatePartiallyReady, spore.TemplateFailed, spore.TemplateDeleting, spore.TemplateDeleted,
}

func (f *filterFlags) add(cmd *cobra.Command, a *app) {
	flags := cmd.Flags()
	flags.StringVar(&f.id, "id", "", "only the one with this id")
	flags.StringVar(&f.name, "name", "", "only the one with this name")
	flags.StringVar(&f.status, "status", "", "only those with this status, such as READY")
	flags.StringVar(&f.sandbox, "sandbox", "", "only those that were taken of this sandbox")
	flags.StringVar(&f.parent, "parent", "", "only those that came of this template or snapshot")
	flags.StringArrayVar(&f.labels, "label", nil, "only those with this label, as KEY=VALUE; may be given several times")
	flags.BoolVar(&f.all, "all", false, "deleted and ephemeral ones too")
	cmd.RegisterFlagCompletionFunc("status", words(lowered(templateStatuses)...))
	cmd.RegisterFlagCompletionFunc("sandbox", a.complete(sandboxes))
	cmd.RegisterFlagCompletionFunc("parent", a.complete(templates))
}

// statusWord is the status as the API spells it.
func (f *filterFlags) statusWord() string { return string(constant[spore.TemplateStatus](f.status)) }

// check refuses a status that there is none of.
func (f *filterFlags) check(cmd *cobra.Command) error {
	if f.status != "" && !slices.Contains(templateStatuses, constant[spore.TemplateStatus](f.status)) {
		return usage(cmd, errors.New("--status takes one of "+strings.Join(lowered(templateStatuses), ", ")+", not "+quote(f.status)))
	}
	return nil
}

func lowered[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = strings.ToLower(string(v))
	}
	return out
}
