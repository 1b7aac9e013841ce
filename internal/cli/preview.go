package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// whereFlags say on which nodes a sandbox may start.
type whereFlags struct {
	nodes  []string
	prefer string
}

func (f *whereFlags) add(cmd *cobra.Command, a *app) {
	cmd.Flags().StringArrayVar(&f.nodes, "node", nil, "only on this node; may be given several times (default any)")
	cmd.Flags().StringVar(&f.prefer, "prefer-node", "", "on this node and no other (default the best of those that may be used)")
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	cmd.RegisterFlagCompletionFunc("prefer-node", a.complete(nodes))
}

var candidateView = view[api.Candidate]{
	id: func(c api.Candidate) string { return c.NodeID },
	columns: []column[api.Candidate]{
		{"node", false, func(c api.Candidate) string { return c.NodeID }},
		{"address", true, func(c api.Candidate) string { return c.Address }},
		{"fits", false, func(c api.Candidate) string { return yes(c.Fits) }},
		{"compat", false, func(c api.Candidate) string { return string(c.CompatStatus) }},
		{"why", false, func(c api.Candidate) string { return c.Why }},
	},
}

// preview says what a create would do. Why it would fail is the error of the command.
func (a *app) preview(ctx context.Context, c *client.Client, req api.CreateRequest) error {
	p, err := c.PreviewSandbox(ctx, req)
	if err != nil {
		return err
	}
	if err := a.printPreview(p); err != nil {
		return err
	}
	return client.PreviewError(p)
}

func (a *app) printPreview(p *api.Preview) error {
	switch {
	case a.output == "json" && !a.quiet:
		return a.json(p)
	case a.quiet:
		if p.NodeID == "" {
			return nil
		}
		_, err := fmt.Fprintln(a.Stdout, printable(p.NodeID, false))
		return err
	}
	var lines []detail
	if t := p.Template; t != nil {
		lines = append(lines, detail{"template", t.ID}, detail{"name", t.Name}, detail{"kind", string(t.Kind)}, detail{"status", string(t.Status)},
			detail{"vcpus", fmt.Sprint(t.VCPUs)}, detail{"memory", mib(t.MemoryMiB)}, detail{"disk", mib(t.DiskMiB)})
	}
	if r := p.Request; r != nil {
		ttl := "for ever"
		if r.TTLSeconds > 0 {
			ttl = (time.Duration(r.TTLSeconds) * time.Second).String()
		}
		lines = append(lines, detail{"time to live", ttl}, detail{"on end", string(r.OnEnd)}, detail{"labels", pairs(r.Labels)}, detail{"env", strings.Join(sortedKeys(r.Env), ",")},
			detail{"network", networkWords(r.Network)}, detail{"ports", toPublish(r.Ports)}, detail{"limits", limitWords(r.Limits)}, detail{"disks", diskWords(r.Disks)})
	}
	lines = append(lines, detail{"would run on", p.NodeID})
	for _, s := range p.Stages {
		lines = append(lines, detail{s.Stage + " took", (time.Duration(s.Microseconds) * time.Microsecond).String()})
	}
	if err := writeDetails(a.Stdout, lines); err != nil || len(p.Candidates) == 0 {
		return err
	}
	fmt.Fprintln(a.Stdout)
	return candidateView.list(a, p.Candidates)
}
