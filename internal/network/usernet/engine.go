package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/sporevm/spore/internal/network/resolver"
)

const nicID tcpip.NICID = 1

// engine is one sandbox's network.
type engine struct {
	log      *slog.Logger
	gate     *gate
	wire     *wire
	in, out  *bucket // for what flows carry; so the acknowledgements of one direction never wait behind the data of the other
	stack    *stack.Stack
	resolver *resolver.Resolver
	flows    *flows

	ctx    context.Context // ends with the engine
	cancel context.CancelFunc
	wg     sync.WaitGroup // all that runs for the guest

	tcp            chan struct{} // a slot for each connection
	opened, failed atomic.Int64
}

// newEngine makes a network for spec. It carries nothing until run.
func newEngine(spec Spec, log *slog.Logger) (*engine, error) {
	e := &engine{
		log: log, gate: newGate(), in: newBucket(spec.Rates.In), out: newBucket(spec.Rates.Out), tcp: make(chan struct{}, maxConnections),
	}
	if err := errors.Join(spec.validate(), e.gate.set(spec.Egress)); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.flows = newFlows(e)
	e.wire = newWire()
	e.wire.ping = e.takeICMP
	e.resolver = resolver.New(resolver.Options{
		Policy: e.gate.policy.Load, Pin: e.gate.open, ResolvConf: spec.ResolvConf, Servers: spec.Nameservers, Logger: log,
	})
	e.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocolWithOptions(ipv4.Options{
			// A policy may open an address of the host's loopback, and it alone decides.
			AllowExternalLoopbackTraffic: true,
		})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := e.configure(); err != nil {
		e.stack.Destroy()
		return nil, err
	}
	return e, nil
}

func (e *engine) configure() error {
	var problems []error
	try := func(what string, err tcpip.Error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("usernet: %s: %s", what, err))
		}
	}
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}
	// Ports are found again by the guest, which remembers its connections longer.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Second)
	try("time-wait", e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &timeWait))
	try("sack", e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	try("buffers", e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive))
	try("buffers", e.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send))
	e.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(e.stack, tcpBuffer, maxHandshakes, e.acceptTCP).HandlePacket)
	e.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(e.stack, e.acceptUDP).HandlePacket)
	try("link", e.stack.CreateNIC(nicID, e.wire))
	try("address", e.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(GatewayAddress.As4()).WithPrefix(),
	}, stack.AddressProperties{}))
	// Whatever address the guest calls, the stack answers in its name.
	try("any address", e.stack.SetPromiscuousMode(nicID, true))
	try("any address", e.stack.SetSpoofing(nicID, true))
	e.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	return errors.Join(problems...)
}

// run carries the VM's frames until it is gone or ctx ends, and takes everything down.
func (e *engine) run(ctx context.Context, c cable) error {
	defer e.close()
	gateway := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(GatewayAddress.As4()), Port: 53}
	pc, err := gonet.DialUDP(e.stack, &gateway, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("usernet: name server: %w", err)
	}
	l, err := gonet.ListenTCP(e.stack, gateway, ipv4.ProtocolNumber)
	if err != nil {
		return errors.Join(fmt.Errorf("usernet: name server: %w", err), pc.Close())
	}
	e.wg.Go(func() {
		if err := e.resolver.Serve(e.ctx, pc, l); err != nil {
			e.log.Error("the name server ended", "error", err)
		}
	})
	stop := context.AfterFunc(ctx, e.cancel)
	defer stop()
	return e.wire.carry(e.ctx, c)
}

// close ends every connection and waits until all that ran for the guest has ended.
func (e *engine) close() {
	e.cancel()
	e.gate.endAll()
	e.stack.Close()
	e.wg.Wait()
	e.stack.Wait()
}

func (e *engine) stats() Stats {
	names := e.resolver.Stats()
	tcp, udp := e.gate.count()
	return Stats{
		TCP: tcp, UDP: udp, Opened: e.opened.Load(), Failed: e.failed.Load(), Denied: e.gate.denied.Load(), Cut: e.gate.cut.Load(),
		InBytes: e.wire.inBytes.Load(), OutBytes: e.wire.outBytes.Load(), Dropped: e.wire.dropped.Load(),
		Queries: names.Queries, RefusedQueries: names.Refused, Pins: e.gate.pinned(),
	}
}

// ends are the two ends of something that the guest sent: where to, and what it calls itself.
func ends(id stack.TransportEndpointID) (to netip.AddrPort, from uint16) {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort), id.RemotePort
}
