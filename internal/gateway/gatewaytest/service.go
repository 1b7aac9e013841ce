// Package gatewaytest is a Service in memory, for tests of the HTTP edge, of the client and of the CLI.
package gatewaytest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/gateway"
)

// Start is when the world of a Service began; its clock stands still there.
var Start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// Service keeps what it is told in memory. Jobs end when EndJob is called, or at once with AutoFinish.
type Service struct {
	held sync.Map // snapshots whose sandboxes are said to stand still

	// Fail answers an error for a call of the named method, or nil.
	Fail func(method string) error
	// Wait, when set, is called by CreateSandbox before it makes the sandbox.
	Wait func(ctx context.Context)
	// AgentTransport answers for the agent of every running sandbox.
	AgentTransport http.RoundTripper
	// AutoFinish ends jobs as soon as they are made.
	AutoFinish bool

	mu        sync.Mutex
	changed   chan struct{}
	n         int
	templates []*spore.Template
	sandboxes []*spore.Sandbox
	jobs      []*spore.Job
	logs      map[string][]spore.LogLine
	kernels   []center.Kernel
	refs      []*spore.RuntimeRef // oldest first
	nodes     []*spore.Node
	replicas  []*spore.Replica
	aliases   []*spore.Alias
	changes   []spore.AliasChange // oldest first
	artifacts []*artifact
	keys      map[string]keyed
	calls     []string
}

type keyed struct {
	digest string
	id     string
}

var _ gateway.Service = (*Service)(nil)

// New answers an empty Service with one kernel and the nodes "local" and "n2".
func New() *Service {
	return &Service{
		nodes:   []*spore.Node{newNode("local", ""), newNode("n2", "n2.example:7071")},
		changed: make(chan struct{}), logs: map[string][]spore.LogLine{}, keys: map[string]keyed{},
		kernels: []center.Kernel{{ID: "krn-000000000000000000000001", KernelVersion: "6.1.0-32-cloud-amd64", AgentVersion: "0.1.0", Bytes: 20 << 20, Default: true, CreatedAt: Start}},
	}
}

// Calls answers the names of the methods that were called, in order.
func (s *Service) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// enter notes a call and takes the lock, which the caller gives back, unless it fails.
func (s *Service) enter(method string) error {
	s.mu.Lock()
	s.calls = append(s.calls, method)
	if s.Fail != nil {
		if err := s.Fail(method); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	return nil
}

func (s *Service) id(prefix string, width int) string {
	s.n++
	return fmt.Sprintf("%s%0*x", prefix, width, s.n)
}

// notify wakes the watchers; the lock is held.
func (s *Service) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// once answers what an earlier request with the same key made; the lock is held.
func (s *Service) once(key center.Idempotency) (string, error) {
	if key.Key == "" {
		return "", nil
	}
	old, known := s.keys[key.Key]
	switch {
	case !known:
		return "", nil
	case old.digest != key.Digest:
		return "", spore.Errorf(spore.CodeConflict, "the idempotency key was used for another request")
	}
	return old.id, nil
}

func (s *Service) keep(key center.Idempotency, id string) {
	if key.Key != "" {
		s.keys[key.Key] = keyed{key.Digest, id}
	}
}

// page answers the part of all that a query asks for, newest first.
func page[T any](all []T, limit int, token string) ([]T, string, error) {
	from := 0
	if token != "" {
		var err error
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > len(all) {
			return nil, "", spore.Invalidf("pageToken", "is not one of ours")
		}
	}
	reversed := slices.Clone(all)
	slices.Reverse(reversed)
	to := min(from+limit, len(all))
	next := ""
	if to < len(all) {
		next = strconv.Itoa(to)
	}
	return reversed[from:to], next, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func clone[T any](v *T) *T {
	c := *v
	return &c
}
