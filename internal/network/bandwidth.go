package network

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// limit sets how fast packets go to the guest and from it. The calling thread is in the namespace.
func limit(l spore.Limits) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := pace(h, TapName, l.NetworkInMbps); err != nil {
		return fmt.Errorf("limit what goes to the guest: %w", err)
	}
	if err := pace(h, upName, l.NetworkOutMbps); err != nil {
		return fmt.Errorf("limit what comes from the guest: %w", err)
	}
	return nil
}

// A bucket holds what is sent in burstTime, and packets wait up to about queueTime for theirs.
const (
	burstTime = 0.05 // seconds; a host that is busy looks away for that long
	minBurst  = 32 << 10
	queueTime = 0.1 // seconds
	minQueue  = 128 << 10
)

// pace bounds what leaves by a link, in 10^6 bits a second; 0 is no bound.
func pace(h *netlink.Handle, name string, mbps int) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if mbps == 0 {
		qdiscs, err := h.QdiscList(link)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			if _, ours := q.(*netlink.Tbf); ours {
				if err := h.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) {
					return err
				}
			}
		}
		return nil
	}
	return h.QdiscReplace(bucket(attrs, mbps))
}

func bucket(attrs netlink.QdiscAttrs, mbps int) *netlink.Tbf {
	rate := float64(mbps) * 1e6 / 8 // bytes a second
	burst := max(burstTime*rate, minBurst)
	queue := min(max(queueTime*rate, minQueue)+burst, math.MaxUint32)
	return &netlink.Tbf{
		QdiscAttrs: attrs, Rate: uint64(rate), Limit: uint32(queue),
		Buffer: uint32(math.Ceil(burst / rate * 1e6 * netlink.TickInUsec())),
	}
}
