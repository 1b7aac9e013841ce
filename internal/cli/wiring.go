package cli

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// wiringFlags say how a sandbox is connected, what it may reach, and what it may take of the machine.
type wiringFlags struct {
	prefix string // of the names of all but --network
	mode   networkFlag
	egress egressFlags
	ports  portsFlag
	limits api.Limits
	disks  disksFlag
}

func (f *wiringFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&f.mode, "network", "how it is connected: none, user or isolated (default the template's)")
	cmd.RegisterFlagCompletionFunc("network", words("none", "user", "isolated"))
	f.egress.add(cmd, f.prefix)
	if f.prefix == "" {
		flags.VarP(&f.ports, "publish", "p", "port to publish on the host: [[ADDRESS:]HOST:]GUEST; HOST left out, or 0, is any that is free")
	} else {
		flags.Var(&f.ports, f.prefix+"publish", "port to publish on the host: [[ADDRESS:]HOST:]GUEST")
	}
	flags.Float64Var(&f.limits.CPUs, f.prefix+"cpus", 0, "processors' worth of time that it may take, such as 0.5")
	flags.IntVar(&f.limits.DiskMBps, f.prefix+"disk-mbps", 0, "megabytes a second of each disk, read and written")
	flags.IntVar(&f.limits.DiskIOPS, f.prefix+"disk-iops", 0, "reads and writes a second of each disk")
	flags.IntVar(&f.limits.NetworkInMbps, f.prefix+"net-in-mbps", 0, "megabits a second to it")
	flags.IntVar(&f.limits.NetworkOutMbps, f.prefix+"net-out-mbps", 0, "megabits a second from it")
}

// addDisks adds the flag for disks of the caller's own.
func (f *wiringFlags) addDisks(cmd *cobra.Command) {
	cmd.Flags().Var(&f.disks, "disk", "file or block device of the node to attach: PATH[:ro]; the sandbox is booted, not thawed")
}

func (f *wiringFlags) network(cmd *cobra.Command) api.Network {
	n := api.Network{Mode: f.mode.mode}
	if e := f.egress.request(); changed(cmd, f.egress.names()) {
		n.Egress = &e
	}
	return n
}

// networkFlag is a network mode.
type networkFlag struct{ mode spore.NetworkMode }

func (f *networkFlag) String() string { return string(f.mode) }
func (f *networkFlag) Type() string   { return "mode" }

func (f *networkFlag) Set(s string) error {
	switch m := spore.NetworkMode(s); m {
	case spore.NetworkNone, spore.NetworkUser, spore.NetworkIsolated:
		f.mode = m
		return nil
	}
	return errors.New("write none, user or isolated")
}

// egressFlags say what a sandbox may reach.
type egressFlags struct {
	prefix               string
	internet             switchFlag
	allow, deny, domains []string
	proxy                string
}

func (f *egressFlags) add(cmd *cobra.Command, prefix string) {
	f.prefix = prefix
	flags := cmd.Flags()
	flags.Var(&f.internet, prefix+"internet", "whether addresses that nothing names may be reached: on or off")
	flags.StringArrayVar(&f.allow, prefix+"allow-cidr", nil, "addresses that may be reached, such as 203.0.113.0/24; may be given several times")
	flags.StringArrayVar(&f.deny, prefix+"deny-cidr", nil, "addresses that may not be reached; may be given several times")
	flags.StringArrayVar(&f.domains, prefix+"allow-domain", nil, "name that may be reached while the internet is off; *.NAME is all below it")
	flags.StringVar(&f.proxy, prefix+"egress-proxy", "", "HTTP proxy to name to commands, such as http://10.1.2.3:3128")
	cmd.RegisterFlagCompletionFunc(prefix+"internet", words("on", "off"))
}

func (f *egressFlags) names() []string {
	names := []string{"internet", "allow-cidr", "deny-cidr", "allow-domain", "egress-proxy"}
	for i := range names {
		names[i] = f.prefix + names[i]
	}
	return names
}

func (f *egressFlags) request() api.Egress {
	return api.Egress{Internet: f.internet.on, AllowCIDRs: f.allow, DenyCIDRs: f.deny, AllowDomains: f.domains, Proxy: f.proxy}
}

// update is what the flags that were given change. A list with the one word "none" takes all away.
func (f *egressFlags) update(cmd *cobra.Command) api.EgressUpdate {
	u := api.EgressUpdate{Internet: f.internet.on}
	for name, l := range map[string]struct {
		from []string
		to   **[]string
	}{"allow-cidr": {f.allow, &u.AllowCIDRs}, "deny-cidr": {f.deny, &u.DenyCIDRs}, "allow-domain": {f.domains, &u.AllowDomains}} {
		if cmd.Flags().Changed(name) {
			list := l.from
			if len(list) == 1 && list[0] == "none" {
				list = []string{}
			}
			*l.to = &list
		}
	}
	if cmd.Flags().Changed("egress-proxy") {
		proxy := f.proxy
		if proxy == "none" {
			proxy = ""
		}
		u.Proxy = &proxy
	}
	return u
}

// switchFlag is on, off, or nothing said.
type switchFlag struct{ on *bool }

func (f *switchFlag) String() string {
	switch {
	case f.on == nil:
		return ""
	case *f.on:
		return "on"
	}
	return "off"
}

func (f *switchFlag) Type() string { return "on|off" }

func (f *switchFlag) Set(s string) error {
	on := s == "on"
	if !on && s != "off" {
		return errors.New("write on or off")
	}
	f.on = &on
	return nil
}

// portsFlag gathers ports to publish.
type portsFlag struct{ list api.Ports }

func (f *portsFlag) String() string {
	parts := make([]string, len(f.list))
	for i, p := range f.list {
		parts[i] = fmt.Sprintf("%d:%d", p.HostPort, p.GuestPort)
	}
	return strings.Join(parts, ",")
}

func (f *portsFlag) Type() string { return "port" }

func (f *portsFlag) Set(s string) error {
	p, err := parsePublish(s)
	if err == nil {
		f.list = append(f.list, p)
	}
	return err
}

// parsePublish reads [[ADDRESS:]HOST:]GUEST. An IPv6 address is in brackets.
func parsePublish(s string) (p api.PortSpec, err error) {
	wrong := errors.New("write HOST:GUEST, ADDRESS:HOST:GUEST or GUEST, such as 8080:80")
	rest, guest, two := cutLast(s, ":")
	if !two {
		guest, rest = s, ""
	}
	if p.GuestPort, err = parsePort(guest); err != nil || p.GuestPort == 0 {
		return api.PortSpec{}, wrong
	}
	if !two {
		return p, nil
	}
	address, host, three := cutLast(rest, ":")
	if !three {
		host, address = rest, ""
	}
	if p.HostPort, err = parsePort(host); err != nil {
		return api.PortSpec{}, wrong
	}
	if !three {
		return p, nil
	}
	if p.HostAddress, err = parseAddress(address); err != nil {
		return api.PortSpec{}, wrong
	}
	return p, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err
}

func parseAddress(s string) (string, error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		s = strings.TrimSuffix(inner, "]")
		if strings.HasSuffix(s, "]") || !strings.Contains(s, ":") {
			return "", errors.New("not an address")
		}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return "", errors.New("not an address")
	}
	return a.String(), nil
}

// disksFlag gathers disks of the caller's own.
type disksFlag struct{ list api.Disks }

func (f *disksFlag) String() string {
	parts := make([]string, len(f.list))
	for i, d := range f.list {
		parts[i] = d.Path
	}
	return strings.Join(parts, ",")
}

func (f *disksFlag) Type() string { return "path" }

func (f *disksFlag) Set(s string) error {
	path, ro := strings.CutSuffix(s, ":ro")
	if path == "" || path[0] != '/' {
		return errors.New("write an absolute path on the node, with :ro when it is only to be read")
	}
	f.list = append(f.list, api.Disk{Path: path, ReadOnly: ro})
	return nil
}

// networkWords is how a sandbox is connected, for people.
func networkWords(n api.Network) string {
	if n.Egress == nil {
		return string(n.Mode)
	}
	e := n.Egress
	internet := "on"
	if e.Internet != nil && !*e.Internet || e.Internet == nil && len(e.AllowDomains) > 0 {
		internet = "off"
	}
	parts := []string{string(n.Mode), "internet " + internet}
	for _, l := range []struct {
		word string
		list []string
	}{{"allowed", append(append([]string{}, e.AllowCIDRs...), e.AllowDomains...)}, {"denied", e.DenyCIDRs}} {
		if len(l.list) > 0 {
			parts = append(parts, l.word+" "+strings.Join(l.list, " "))
		}
	}
	if e.Proxy != "" {
		parts = append(parts, "proxy "+e.Proxy)
	}
	return strings.Join(parts, ", ")
}

// portWords are published ports, as they were asked for.
func portWords[P any](ports []P, of func(P) (address string, host, guest int)) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		address, host, guest := of(p)
		if address == "" {
			address = spore.DefaultHostAddress
		}
		at := net.JoinHostPort(address, strconv.Itoa(host))
		if host == 0 {
			at = "any of " + address
		}
		parts[i] = fmt.Sprintf("%s -> %d", at, guest)
	}
	return strings.Join(parts, ", ")
}

func published(ports []api.Port) string {
	return portWords(ports, func(p api.Port) (string, int, int) { return p.HostAddress, p.HostPort, p.GuestPort })
}

func toPublish(ports api.Ports) string {
	return portWords(ports, func(p api.PortSpec) (string, int, int) { return p.HostAddress, p.HostPort, p.GuestPort })
}

// limitWords are limits, for people.
func limitWords(l api.Limits) string {
	var parts []string
	if l.CPUs != 0 {
		parts = append(parts, strconv.FormatFloat(l.CPUs, 'f', -1, 64)+" processors")
	}
	for _, n := range []struct {
		n    int
		what string
	}{{l.DiskMBps, "MB/s of disk"}, {l.DiskIOPS, "IOPS"}, {l.NetworkInMbps, "Mbit/s in"}, {l.NetworkOutMbps, "Mbit/s out"}} {
		if n.n != 0 {
			parts = append(parts, fmt.Sprint(n.n, " ", n.what))
		}
	}
	return strings.Join(parts, ", ")
}

func diskWords(disks api.Disks) string {
	parts := make([]string, len(disks))
	for i, d := range disks {
		if parts[i] = d.Path; d.ReadOnly {
			parts[i] += " (read-only)"
		}
	}
	return strings.Join(parts, ", ")
}
