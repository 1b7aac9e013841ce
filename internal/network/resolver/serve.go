package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	idleTime  = 10 * time.Second // of a connection that asks nothing
	maxPerTCP = 1000             // queries of one connection
)

// Serve answers queries until ctx ends, then closes both and returns nil. It fails when one of them does.
func (r *Resolver) Serve(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		pc.Close()
		l.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	failed := make(chan error, 2)
	wg.Go(func() { failed <- r.servePackets(ctx, pc); cancel() })
	wg.Go(func() { failed <- r.serveConnections(ctx, l); cancel() })
	wg.Wait()
	return errors.Join(<-failed, <-failed)
}

// admit takes a slot for one query; false when there is none, or too many came too fast.
func (r *Resolver) admit() bool {
	if r.pace.Allow() {
		select {
		case r.slots <- struct{}{}:
			return true
		default:
		}
	}
	r.dropped.Add(1)
	return false
}

func (r *Resolver) servePackets(ctx context.Context, pc net.PacketConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := make([]byte, maxQuery)
	failures := 0
	for {
		n, from, err := pc.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			// One may come of an asker that has closed its port meanwhile; many in a row are of the socket itself.
			if failures++; failures < 10 && !errors.Is(err, net.ErrClosed) {
				continue
			}
			return fmt.Errorf("resolver: %w", err)
		}
		failures = 0
		if !r.admit() {
			continue
		}
		raw := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer func() { <-r.slots }()
			if out := r.reply(ctx, raw, maxReply); out != nil {
				if _, err := pc.WriteTo(out, from); err != nil && ctx.Err() == nil {
					r.log.Debug("answer a name query", "error", err)
				}
			}
		})
	}
}

func (r *Resolver) serveConnections(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, connections)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("resolver: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			r.dropped.Add(1)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			r.converse(ctx, conn)
		})
	}
}

// converse answers the queries of one connection, one after the other, until it ends or has been long enough.
func (r *Resolver) converse(ctx context.Context, conn net.Conn) {
	for range maxPerTCP {
		if conn.SetDeadline(time.Now().Add(idleTime)) != nil {
			return
		}
		var head [2]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		size := binary.BigEndian.Uint16(head[:])
		if size > maxQuery {
			return
		}
		raw := make([]byte, size)
		if _, err := io.ReadFull(conn, raw); err != nil {
			return
		}
		// Here the asker can be made to wait.
		if r.pace.Wait(ctx) != nil {
			return
		}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		out := r.reply(ctx, raw, 65535)
		<-r.slots
		if out == nil || conn.SetWriteDeadline(time.Now().Add(idleTime)) != nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}
