package usernet

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// datagramPatience is how long a datagram to the guest may wait for the rate to let it pass.
const datagramPatience = 100 * time.Millisecond

// acceptUDP takes the first datagram of a flow. The stack tells the guest that a port is unreachable when the answer is false.
func (e *engine) acceptUDP(r *udp.ForwarderRequest) bool {
	to, from := ends(r.ID())
	d, denied := e.flows.start(to, flowTime, func() (net.Conn, error) { return net.Dial("udp4", to.String()) })
	if d == nil {
		return !denied && e.prohibit(to, from, header.ICMPv4HostUnreachable)
	}
	var queue waiter.Queue
	ep, err := r.CreateEndpoint(&queue)
	if err != nil || !e.begin() {
		if err == nil {
			ep.Close()
		}
		d.end()
		return true
	}
	guest := gonet.NewUDPConn(&queue, ep)
	go func() {
		defer e.wg.Done()
		defer d.end()
		stop := context.AfterFunc(d.ctx, func() { guest.Close() })
		defer stop()
		defer guest.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer d.cancel()
			buf := make([]byte, 64<<10)
			for {
				n, err := guest.Read(buf)
				if err != nil {
					return
				}
				d.seen()
				if !e.out.within(d.ctx, onWire(n), datagramPatience) {
					e.wire.dropped.Add(1)
					continue
				}
				// What the network does not take is lost, as datagrams are. A port that is closed the reader hears of.
				d.host.Write(buf[:n])
			}
		})
		buf := make([]byte, 64<<10)
		for {
			n, err := d.host.Read(buf)
			if errors.Is(err, syscall.ECONNREFUSED) {
				e.prohibit(to, from, header.ICMPv4PortUnreachable)
				break
			}
			if err != nil {
				break
			}
			d.seen()
			if !e.in.within(d.ctx, onWire(n), datagramPatience) {
				e.wire.dropped.Add(1)
				continue
			}
			if _, err := guest.Write(buf[:n]); err != nil {
				break
			}
		}
		d.cancel()
		guest.Close()
		wg.Wait()
	}()
	return true
}
