// Package usernet connects a sandbox to the world without any privilege: a process beside its VM takes the guest's Ethernet
// frames, ends its connections in a network stack of its own, and makes those that the policy allows again as ordinary
// connections of the host.
//
// The process, the sidecar, is this program under a hidden name; see Main. Start starts one in a VM's directory. It belongs
// to the VM rather than to the server: it goes on when the server ends, a later server finds it with Open, and it ends with
// the VM's connection, which is a stream socket or, for a VM that takes frames from nothing else, a TAP device.
//
// Everything that comes from the guest is hostile; so all that a guest can make the sidecar hold or do
// is bounded, and the sidecar has no right that the VM has not.
package usernet

import (
	"net/netip"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/network/policy"
)

// What every guest finds on its link.
var (
	GuestAddress   = netip.MustParseAddr("10.254.254.2")
	GatewayAddress = netip.MustParseAddr("10.254.254.1") // router and name server
	linkPrefix     = netip.MustParsePrefix("10.254.254.0/30")

	// A guest that was thawed elsewhere remembers the gateway's hardware address; so it is the same in every mode.
	gatewayMAC = [6]byte{0x02, 0x53, 0x50, 0x00, 0x00, 0x02}
	guestMAC   = [6]byte{0x02, 0x53, 0x50, 0x00, 0x00, 0x01}
)

// Command is the word on the command line that makes this program a sidecar.
const Command = "network-stack"

// Names in the VM's directory.
const (
	nameFrames  = "net.sock"    // takes the VM's frames
	nameControl = "netctl.sock" // takes changes and questions
	nameRecord  = "net.json"    // tells which process it is
	nameLog     = "net.log"
)

const (
	mtu = 1500

	// maxFrame is as long as QEMU makes frames, whatever the guest sends. Those longer than mtu are dropped, longer than
	// this end the connection: whoever sends them is no VM.
	maxFrame = 68 << 10

	maxConnections = 1024             // TCP, of one sandbox
	maxHandshakes  = 256              // TCP, those of them that are being set up
	maxFlows       = 512              // UDP and pings; the one that was silent longest makes room
	maxPings       = 16               // of those
	tcpBuffer      = 256 << 10        // each way, on the guest's side
	dialTime       = 20 * time.Second // to reach a server
	maxPins        = 4096             // addresses opened because a name led there
)

var (
	flowTime   = 2 * time.Minute  // how long a UDP flow may be silent
	pingTime   = 10 * time.Second // how long an answer to a ping is waited for
	connectFor = time.Minute      // how long the VM may take to connect
	drainTime  = time.Minute      // how long a guest may take for the rest of a connection that has ended
	recheck    = 15 * time.Second // how often the host's own addresses are looked at
)

// Spec is what a sidecar does. Its JSON form is read from the sidecar's standard input, and is no secret to anyone but other
// users of the host.
type Spec struct {
	ID     string       `json:"id"` // the sandbox's; appears in the process title
	Egress spore.Egress `json:"egress"`
	Rates  Rates        `json:"rates"`
	// UID is the user that a sidecar becomes that is started by root; 0 or less keeps the user.
	UID int `json:"uid,omitempty"`
	// Tap is for a VM that takes frames from a TAP device only: it finds TapName in the network namespace Link.NetNS, and there is no
	// Link.Socket. Only root can start such a sidecar; see ProbeTap.
	Tap bool `json:"tap,omitempty"`
	// ResolvConf names the file that says which name servers to ask; default /etc/resolv.conf.
	ResolvConf string `json:"resolvConf,omitempty"`
	// Nameservers are asked instead of those that ResolvConf names.
	Nameservers []netip.AddrPort `json:"nameservers,omitempty"`
}

// Rates bound how fast a sandbox's traffic is, in bits a second; 0 is no bound.
type Rates struct {
	In  int64 `json:"in,omitempty"`  // to the guest
	Out int64 `json:"out,omitempty"` // from the guest
}

// RatesOf reads the rates of a sandbox's limits.
func RatesOf(l spore.Limits) Rates {
	return Rates{In: int64(l.NetworkInMbps) * 1_000_000, Out: int64(l.NetworkOutMbps) * 1_000_000}
}

func (r Rates) validate() error {
	if r.In < 0 || r.Out < 0 {
		return spore.Invalidf("rates", "a rate cannot be negative")
	}
	return nil
}

// validate refuses what a sidecar would refuse, before there is one.
func (s Spec) validate() error {
	if _, err := policy.Compile(s.Egress, nil); err != nil {
		return err
	}
	return s.Rates.validate()
}

// Stats are what a sidecar has done so far.
type Stats struct {
	Connected      bool  `json:"connected"` // the VM is
	TCP            int   `json:"tcp"`       // open connections
	UDP            int   `json:"udp"`       // flows, pings included
	Opened         int64 `json:"opened"`    // connections and flows that were made
	Denied         int64 `json:"denied"`    // by the policy
	Failed         int64 `json:"failed"`    // no such server, or too many at once
	Cut            int64 `json:"cut"`       // by a change of the policy
	InBytes        int64 `json:"inBytes"`   // of frames to the guest
	OutBytes       int64 `json:"outBytes"`
	Dropped        int64 `json:"dropped"` // frames that are not carried, or found no room
	Queries        int64 `json:"queries"` // for names
	RefusedQueries int64 `json:"refusedQueries"`
	Pins           int   `json:"pins"` // addresses open because of a name
}
