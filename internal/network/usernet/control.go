package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	spore "github.com/sporevm/spore"
)

// A conversation on the control socket is one request and one response, each a JSON object.

// request asks for one thing.
type request struct {
	Egress *spore.Egress `json:"egress,omitempty"` // to put into force
	Rates  *Rates        `json:"rates,omitempty"`  // the same
	End    bool          `json:"end,omitempty"`    // to end, with all connections
}

// response tells how it went, and how things stand.
type response struct {
	Stats Stats    `json:"stats"`
	Error *failure `json:"error,omitempty"`
}

// failure is a spore.Error on its way.
type failure struct {
	Code    spore.Code `json:"code"`
	Message string     `json:"message"`
	Field   string     `json:"field,omitempty"`
	Hint    string     `json:"hint,omitempty"`
}

func failureOf(err error) *failure {
	if err == nil {
		return nil
	}
	e := spore.AsError(err)
	return &failure{e.Code, e.Message, e.Field, e.Hint}
}

func (f *failure) err() error {
	if f == nil {
		return nil
	}
	return &spore.Error{Code: f.Code, Message: f.Message, Field: f.Field, Hint: f.Hint}
}

const (
	maxMessage  = 1 << 20
	controlTime = 10 * time.Second // for one conversation
	talkers     = 8                // conversations at once
)

// serveControl answers on l until ctx ends.
func serveControl(ctx context.Context, l net.Listener, obey func(request) response) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, talkers)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			converse(conn, obey)
		})
	}
}

func converse(conn net.Conn, obey func(request) response) {
	if conn.SetDeadline(time.Now().Add(controlTime)) != nil {
		return
	}
	req, err := parseRequest(io.LimitReader(conn, maxMessage))
	var res response
	if err != nil {
		res.Error = failureOf(spore.Invalidf("request", "it cannot be read").WithCause(err))
	} else {
		res = obey(req)
	}
	// An asker that has left needs no answer.
	_ = json.NewEncoder(conn).Encode(res)
}

func parseRequest(r io.Reader) (request, error) {
	var req request
	d := json.NewDecoder(r)
	d.DisallowUnknownFields() // it would ask for what is not done
	err := d.Decode(&req)
	return req, err
}

// ask has one conversation.
func ask(ctx context.Context, conn net.Conn, req request) (Stats, error) {
	defer conn.Close()
	if err := ctx.Err(); err != nil { // what nobody waits for is not asked
		return Stats{}, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err := conn.SetDeadline(time.Now().Add(controlTime))
	if err == nil {
		err = json.NewEncoder(conn).Encode(req)
	}
	var res response
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&res)
	}
	if err != nil {
		if ctx.Err() != nil {
			return Stats{}, ctx.Err()
		}
		return Stats{}, spore.Errorf(spore.CodeUnreachable, "the network process does not answer").WithCause(errors.Join(err))
	}
	return res.Stats, res.Error.err()
}
