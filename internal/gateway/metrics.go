package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func (n *native) GetMetrics(ctx context.Context, _ api.GetMetricsRequestObject) (api.GetMetricsResponseObject, error) {
	m, err := n.svc.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := writeMetrics(&text, m); err != nil {
		return nil, err
	}
	return streamed(func(w http.ResponseWriter) error {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if _, err := w.Write(text.Bytes()); err != nil {
			logOf(ctx).Debug("metrics not delivered", "err", err)
		}
		return nil
	}), nil
}

// writeMetrics writes metrics as Prometheus text exposition. What is counted by state has a line for each state, also
// where it counts nothing, so that a rate or an alert never lacks its series.
func writeMetrics(w io.Writer, m *center.Metrics) error {
	p := &exposition{w: w}
	p.head("spore_resolve_seconds", "histogram", "How long the stages of resolving a create took, and all of it.")
	for _, h := range m.Resolve {
		p.histogram("spore_resolve_seconds", "stage", h)
	}
	p.head("spore_jobs", "gauge", "Jobs by status.")
	counts(p, "spore_jobs", "status", m.Jobs, spore.JobTransitions)
	p.head("spore_nodes", "gauge", "Nodes by state.")
	counts(p, "spore_nodes", "state", m.Nodes, spore.NodeTransitions)
	p.head("spore_nodes_draining", "gauge", "Nodes that are drained.")
	p.sample("spore_nodes_draining", float64(m.Draining))
	p.head("spore_sandboxes", "gauge", "Sandboxes by state.")
	counts(p, "spore_sandboxes", "state", m.Sandboxes, spore.SandboxTransitions)
	p.head("spore_node_storage_bytes", "gauge", "The nodes' disks.")
	for _, s := range m.Storage {
		p.sample("spore_node_storage_bytes", float64(s.TotalBytes), "node", s.NodeID, "kind", "total")
		p.sample("spore_node_storage_bytes", float64(s.UsedBytes), "node", s.NodeID, "kind", "used")
		p.sample("spore_node_storage_bytes", float64(s.ReservedBytes), "node", s.NodeID, "kind", "reserved")
	}
	return p.err
}

// exposition writes lines until one fails.
type exposition struct {
	w   io.Writer
	err error
}

func (p *exposition) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *exposition) head(name, kind, help string) {
	p.printf("# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// sample writes one line; labels are name, value, name, value.
func (p *exposition) sample(name string, value float64, labels ...string) {
	var b strings.Builder
	for i := 0; i+1 < len(labels); i += 2 {
		fmt.Fprintf(&b, `,%s="%s"`, labels[i], escapeLabel.Replace(labels[i+1]))
	}
	text := b.String()
	if text != "" {
		text = "{" + text[1:] + "}"
	}
	p.printf("%s%s %s\n", name, text, number(value))
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

func (p *exposition) histogram(name, label string, h center.Histogram) {
	if len(h.Counts) != len(h.Bounds)+1 {
		p.err = fmt.Errorf("histogram %s of %s has %d bounds and %d counts", h.Name, name, len(h.Bounds), len(h.Counts))
		return
	}
	total := uint64(0)
	for i, bound := range h.Bounds {
		total += h.Counts[i]
		p.sample(name+"_bucket", float64(total), label, h.Name, "le", number(bound))
	}
	total += h.Counts[len(h.Bounds)]
	p.sample(name+"_bucket", float64(total), label, h.Name, "le", "+Inf")
	p.sample(name+"_sum", h.Sum, label, h.Name)
	p.sample(name+"_count", float64(total), label, h.Name)
}

func counts[S ~string](p *exposition, name, label string, have map[S]int, known spore.Transitions[S]) {
	for _, state := range slices.Sorted(maps.Keys(known)) {
		p.sample(name, float64(have[state]), label, string(state))
	}
}
