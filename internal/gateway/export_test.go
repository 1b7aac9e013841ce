package gateway

import "strings"

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
