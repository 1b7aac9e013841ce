package network

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// match is a part of a packet filter rule: what a packet must be like, or what becomes of it.
type match []expr.Any

// rule joins what stands in one rule.
func rule(parts ...match) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func meta(key expr.MetaKey, op expr.CmpOp, value []byte) match {
	return match{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: value}}
}

func payload(base expr.PayloadBase, offset, length, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
}

// Where things stand in an IPv4 header, and in that of TCP and UDP. The second register of four bytes follows the first.
var (
	loadSource      = payload(expr.PayloadBaseNetworkHeader, 12, 4, 1)
	loadDestination = payload(expr.PayloadBaseNetworkHeader, 16, 4, 1)
)

const (
	secondRegister = 9  // after one of four bytes in register 1
	afterName      = 12 // after the name of an interface in register 1
	thirdRegister  = 10
)

// from and to are names of interfaces; starting matches all that begin so.
func from(name string) match       { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(name)) }
func to(name string) match         { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, ifname(name)) }
func fromStarting(s string) match  { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(s)) }
func toStarting(s string) match    { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(s)) }
func toNotStarting(s string) match { return meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, []byte(s)) }

// arrivedIn matches what came by an interface whose name is in s.
func arrivedIn(s *nftables.Set) match {
	return match{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, lookup(s)}
}

func protocol(p byte) match { return meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{p}) }

func sourceIs(a netip.Addr) match {
	return match{loadSource, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}}
}

func sourceIsNot(a netip.Addr) match {
	return match{loadSource, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()}}
}

func destinationIs(a netip.Addr) match {
	return match{loadDestination, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}}
}

func destinationIn(s *nftables.Set) match { return match{loadDestination, lookup(s)} }

func portIs(port uint16) match {
	return match{
		payload(expr.PayloadBaseTransportHeader, 2, 2, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

func echoRequest() match {
	return append(protocol(unix.IPPROTO_ICMP), payload(expr.PayloadBaseTransportHeader, 0, 1, 1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{8}})
}

func lookup(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}
}

func lookupNot(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: true}
}

// stateIn matches packets of flows in one of the states.
func stateIn(bits uint32) match {
	return match{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

const known = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED

func markIs(mark uint32) match {
	return match{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
	}
}

func setMark(mark uint32) match {
	return match{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}
}

func verdict(kind expr.VerdictKind) match { return match{&expr.Verdict{Kind: kind}} }
func accept() match                       { return verdict(expr.VerdictAccept) }
func drop() match                         { return verdict(expr.VerdictDrop) }

func rejectTCP() match { return match{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

// rejectAny tells the sender that a policy forbids it.
func rejectAny() match {
	const prohibited = 13
	return match{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: prohibited}}
}

func atMost(perSecond uint64) match {
	return match{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: uint32(perSecond)}}
}

// moreThan matches packets beyond so many in a second.
func moreThan(perSecond, burst uint32) match {
	return match{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(perSecond), Unit: expr.LimitTimeSecond, Burst: burst, Over: true}}
}

// flowsOver matches packets of flows beyond so many at a time.
func flowsOver(n uint32) match {
	const inverted = 1
	return match{&expr.Connlimit{Count: n, Flags: inverted}}
}

// untracked makes the kernel keep no state of what it matched.
func untracked() match { return match{&expr.Notrack{}} }

// ifname is the name of an interface as sets and rules hold it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// newConn opens the way to the packet filter of the namespace that the calling thread is in.
func newConn() (*nftables.Conn, error) {
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		// A policy of the greatest size goes in one piece.
		return errors.Join(c.SetWriteBuffer(4<<20), c.SetReadBuffer(4<<20))
	}))
}

// filterWithin makes one change of the packet filter in the namespace that the calling thread is in: all of it is in force at
// once, or nothing is.
func filterWithin(change func(c *nftables.Conn) error) error {
	c, err := newConn()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	if err := change(c); err != nil {
		return err
	}
	return c.Flush()
}

// renew makes a table anew in the same step in which the old one, if there is one, goes.
func renew(c *nftables.Conn, t *nftables.Table) {
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
}

// forget removes a table, whether or not it is there.
func forget(c *nftables.Conn, t *nftables.Table) {
	c.AddTable(t)
	c.DelTable(t)
}

// elementChunk is how many elements go in one message, whose attributes have lengths of 16 bits.
const elementChunk = 512

func addElements(c *nftables.Conn, s *nftables.Set, all []nftables.SetElement) error {
	for len(all) > 0 {
		n := min(len(all), elementChunk)
		if err := c.SetAddElements(s, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// dropElements removes elements, whether or not they are there.
func dropElements(c *nftables.Conn, s *nftables.Set, all []nftables.SetElement) error {
	if err := addElements(c, s, all); err != nil {
		return err
	}
	for len(all) > 0 {
		n := min(len(all), elementChunk)
		if err := c.SetDeleteElements(s, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
