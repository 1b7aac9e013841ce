package memory

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore"
)

// Rows are copied on their way in and on their way out. On their way in they also become what a database would give back:
// times in UTC, without the monotonic reading and within the range of 64 bits of nanoseconds, text that is proper, and nil for
// what is empty.

func keepTimes(times ...*time.Time) {
	for _, t := range times {
		*t = keepTime(*t)
	}
}

var (
	earliest = time.Unix(0, math.MinInt64).UTC()
	latest   = time.Unix(0, math.MaxInt64).UTC()
)

func keepTime(t time.Time) time.Time {
	switch {
	case t.IsZero():
		return time.Time{}
	case t.Before(earliest):
		return earliest
	case t.After(latest):
		return latest
	case t.UnixNano() == 0: // databases keep the zero time as that
		return time.Time{}
	}
	return time.Unix(0, t.UnixNano()).UTC()
}

func keepText(texts ...*string) {
	const replacement = "\uFFFD"
	for _, s := range texts {
		*s = strings.ReplaceAll(strings.ToValidUTF8(*s, replacement), "\x00", replacement)
	}
}

func copyMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func copyList[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return slices.Clone(list)
}

func copyTemplate(t *spore.Template) *spore.Template {
	c := *t
	c.Process.Entrypoint = copyList(t.Process.Entrypoint)
	c.Process.Cmd = copyList(t.Process.Cmd)
	c.Process.Env = copyList(t.Process.Env)
	c.Readiness.Command = copyList(t.Readiness.Command)
	c.Replicas.Nodes = copyList(t.Replicas.Nodes)
	c.Replicas.Selector = copyMap(t.Replicas.Selector)
	c.Request = copyList(t.Request)
	c.Labels = copyMap(t.Labels)
	return &c
}

func keepTemplate(t *spore.Template) *spore.Template {
	c := copyTemplate(t)
	keepText(&c.LastError, &c.DisplayName, &c.Author, &c.Reason)
	keepTimes(&c.CreatedAt, &c.UpdatedAt)
	return c
}

func copyReplica(r *spore.Replica) *spore.Replica { c := *r; return &c }

func keepReplica(r *spore.Replica) *spore.Replica {
	c := copyReplica(r)
	keepText(&c.ErrorMessage)
	keepTimes(&c.RetryAt, &c.CompatCheckedAt, &c.VerifiedAt, &c.UpdatedAt)
	return c
}

func copyArtifact(a *spore.Artifact) *spore.Artifact {
	c := *a
	c.Process.Entrypoint = copyList(a.Process.Entrypoint)
	c.Process.Cmd = copyList(a.Process.Cmd)
	c.Process.Env = copyList(a.Process.Env)
	return &c
}

func keepArtifact(a *spore.Artifact) *spore.Artifact {
	c := copyArtifact(a)
	c.Reused = false // not kept
	keepText(&c.LastError)
	keepTimes(&c.UnusedAt, &c.TriedAt, &c.CreatedAt, &c.UpdatedAt)
	return c
}

func copySandbox(s *spore.Sandbox) *spore.Sandbox {
	c := *s
	c.Labels = copyMap(s.Labels)
	c.Env = copyMap(s.Env)
	c.Network.Egress = copyEgress(s.Network.Egress)
	c.Ports = copyList(s.Ports)
	c.Disks = copyList(s.Disks)
	return &c
}

func copyEgress(e spore.Egress) spore.Egress {
	if e.Internet != nil {
		on := *e.Internet
		e.Internet = &on
	}
	e.AllowCIDRs, e.DenyCIDRs, e.AllowDomains = copyList(e.AllowCIDRs), copyList(e.DenyCIDRs), copyList(e.AllowDomains)
	return e
}

func keepSandbox(s *spore.Sandbox) *spore.Sandbox {
	c := copySandbox(s)
	keepText(&c.StateReason)
	keepTimes(&c.CreatedAt, &c.UpdatedAt, &c.EndsAt)
	return c
}

func copyRef(r *spore.RuntimeRef) *spore.RuntimeRef { c := *r; return &c }

func keepRef(r *spore.RuntimeRef) *spore.RuntimeRef {
	c := copyRef(r)
	keepText(&c.Reason, &c.LastError)
	keepTimes(&c.AttachedAt, &c.ReleasedAt, &c.LeaseUntil, &c.LastSeenAt)
	return c
}

func copyJob(j *spore.Job) *spore.Job {
	c := *j
	c.Redo.Scope = copyList(j.Redo.Scope)
	c.Request = copyList(j.Request)
	c.Result = copyList(j.Result)
	if j.Error != nil {
		failure := *j.Error
		c.Error = &failure
	}
	return &c
}

func keepJob(j *spore.Job) *spore.Job {
	c := copyJob(j)
	keepTimes(&c.CreatedAt, &c.StartedAt, &c.FinishedAt)
	return c
}

func copyNode(n *spore.Node) *spore.Node {
	c := *n
	c.Labels = copyMap(n.Labels)
	c.Installed, c.Networks = copyList(n.Installed), copyList(n.Networks)
	return &c
}

func keepNode(n *spore.Node) *spore.Node {
	c := copyNode(n)
	keepText(&c.StateReason, &c.Storage.LastError)
	keepTimes(&c.CreatedAt, &c.UpdatedAt, &c.SeenAt, &c.Storage.MeasuredAt)
	return c
}
