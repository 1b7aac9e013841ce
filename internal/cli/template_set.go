package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) templateSet() *cobra.Command {
	var set settings
	cmd := &cobra.Command{
		Use:   "set REF",
		Short: "Change what may change of a template or snapshot",
		Long: `Change what may change of a template or snapshot: what people call it, its labels, whether policies may remove it,
where it wants to be and which components must agree. What is not named stays as it is.`,
		Example: `  spore template set python --display-name 'Python 3.12' --retain
  spore template set python --label team=red --unlabel trial
  spore template set python --replicas-min 2 --selector zone=a --pin`,
		Args:              exactly(1),
		ValidArgsFunction: a.complete(templates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := set.check(cmd); err != nil {
				return err
			}
			update, err := set.update(cmd, func() (*api.Template, error) { return c.GetTemplate(cmd.Context(), args[0]) })
			if err != nil {
				return err
			}
			t, err := c.UpdateTemplate(context.WithoutCancel(cmd.Context()), args[0], *update)
			if err != nil {
				return err
			}
			return a.templateView().one(a, *t)
		}),
	}
	set.add(cmd, a)
	return cmd
}

// settings are the flags of template set.
type settings struct {
	place                      placeFlags
	displayName                string
	labels                     mapFlag
	unlabel                    []string
	retain, release            bool
	unpin, anyNode, unselect   bool
	keepsLabels, keepsReplicas bool
}

// changes are the flags that change something, by what they change.
var (
	labelChanges   = []string{"label", "unlabel"}
	replicaChanges = []string{"node", "any-node", "selector", "no-selector", "replicas-min", "replicas-max", "pin", "unpin"}
	plainChanges   = []string{"display-name", "retain", "no-retain", "compat-policy"}
)

func (s *settings) add(cmd *cobra.Command, a *app) {
	f := cmd.Flags()
	s.place.add(cmd, a)
	f.StringVar(&s.displayName, "display-name", "", "a name for people; empty takes it away")
	f.Var(&s.labels, "label", "label to attach or change: KEY=VALUE")
	f.StringArrayVar(&s.unlabel, "unlabel", nil, "label to take away, by its key")
	f.BoolVar(&s.retain, "retain", false, "no policy may remove it")
	f.BoolVar(&s.release, "no-retain", false, "policies may remove it")
	f.BoolVar(&s.unpin, "unpin", false, "no longer keep it on every node that fits")
	f.BoolVar(&s.anyNode, "any-node", false, "no longer only on certain nodes")
	f.BoolVar(&s.unselect, "no-selector", false, "no longer only on nodes with certain labels")
	cmd.MarkFlagsMutuallyExclusive("retain", "no-retain")
	cmd.MarkFlagsMutuallyExclusive("pin", "unpin")
	cmd.MarkFlagsMutuallyExclusive("node", "any-node")
	cmd.MarkFlagsMutuallyExclusive("selector", "no-selector")
}

func (s *settings) check(cmd *cobra.Command) error {
	s.keepsLabels, s.keepsReplicas = !changed(cmd, labelChanges), !changed(cmd, replicaChanges)
	if s.keepsLabels && s.keepsReplicas && !changed(cmd, plainChanges) {
		return usage(cmd, errors.New("nothing is to be changed"))
	}
	for _, key := range s.unlabel {
		if _, both := s.labels.values[key]; both {
			return usage(cmd, fmt.Errorf("label %s is to be set and taken away", key))
		}
	}
	return nil
}

// changed says whether any of the named flags was given.
func changed(cmd *cobra.Command, flags []string) bool {
	for _, name := range flags {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// update is the request. Labels and replica policies are replaced as a whole on the wire, so the present ones are asked for.
func (s *settings) update(cmd *cobra.Command, present func() (*api.Template, error)) (*api.TemplateUpdate, error) {
	given := cmd.Flags().Changed
	u := &api.TemplateUpdate{CompatPolicy: s.place.policy.policy}
	if given("display-name") {
		u.DisplayName = &s.displayName
	}
	switch keep := !s.release; {
	case given("retain"):
		u.Retain = &s.retain
	case given("no-retain"):
		u.Retain = &keep
	}
	if s.keepsLabels && s.keepsReplicas {
		return u, nil
	}
	t, err := present()
	if err != nil {
		return nil, err
	}
	if !s.keepsLabels {
		labels := changedLabels(t.Labels, s.labels.values, s.unlabel)
		u.Labels = (*api.Labels)(&labels)
	}
	if !s.keepsReplicas {
		replicas := s.replicas(given, t.ReplicaPolicy)
		u.Replicas = &replicas
	}
	return u, nil
}

// replicas is a replica policy with what was given changed.
func (s *settings) replicas(given func(string) bool, p api.ReplicaPolicy) api.ReplicaPolicy {
	switch {
	case s.anyNode:
		p.Nodes = nil
	case given("node"):
		p.Nodes = s.place.nodes
	}
	switch {
	case s.unselect:
		p.Selector = nil
	case given("selector"):
		p.Selector = s.place.selector.values
	}
	if given("replicas-min") {
		p.Min = s.place.min
	}
	if given("replicas-max") {
		p.Max = s.place.max
	}
	switch {
	case given("pin"):
		p.Pinned = s.place.pin
	case given("unpin"):
		p.Pinned = !s.unpin
	}
	return p
}

// changedLabels are labels with some set and some taken away. The answer is never nil.
func changedLabels(have, set map[string]string, unset []string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, have)
	maps.Copy(out, set)
	for _, key := range unset {
		delete(out, key)
	}
	return out
}
