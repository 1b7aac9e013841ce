package gateway

import (
	"strings"
	"time"
)

// RouteOf says what the table of routes knows of a route.
func RouteOf(pattern string) (body bool, params map[string]bool, ok bool) {
	rt, ok := routes[pattern]
	params = map[string]bool{}
	for i := 0; rt.params != nil && i < rt.params.NumField(); i++ {
		name, _, _ := strings.Cut(rt.params.Field(i).Tag.Get("form"), ",")
		params[name] = true
	}
	return rt.body != nil, params, ok
}

// Routes lists the table of routes.
func Routes() []string { return sortedKeys(routes) }

// LoopbackHost and AgentRoute are the decisions of the guard and of the agent proxy.
var (
	LoopbackHost = loopbackHost
	AgentRoute   = agentRoute
)

// Tokens makes and checks tokens of artifacts.
type Tokens = artifactTokens

// NewTokens answers tokens with a key and a clock.
func NewTokens(key []byte, now func() time.Time) Tokens { return artifactTokens{key, now} }

// Issue and Admit are what the edge does with them.
func (t artifactTokens) Issue(id string, end time.Time) string { return t.issue(id, end) }
func (t artifactTokens) Admit(id, token string) error          { return t.admit(id, token) }

// ParseToken takes a token apart.
var ParseToken = parseToken

// ReadRange reads a Range header: part says whether one range of it is to be answered, none whether a refusal.
func ReadRange(header string, size int64) (start, length int64, part, none bool) {
	r, how := readRange(header, size)
	return r.start, r.length, how == rangePart, how == rangeNone
}
