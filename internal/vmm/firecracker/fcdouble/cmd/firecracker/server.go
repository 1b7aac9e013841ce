package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// server is the API on its socket. Requests are served one after the other.
type server struct {
	rel    release
	shapes *shapes
	log    *logger
	limit  int64 // bytes of a body
	vm     *machine

	turn  sync.Mutex
	http  http.Server
	fatal chan struct{} // closed when the process must end
	once  sync.Once
}

func newServer(rel release, log *logger, limit int64, vm *machine) *server {
	s := &server{rel: rel, shapes: newShapes(rel), log: log, limit: limit, vm: vm, fatal: make(chan struct{})}
	s.http.Handler = s
	return s
}

// serve answers until the listener is closed.
func (s *server) serve(l net.Listener) { s.http.Serve(l) }

// ServeHTTP answers one request.
func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.turn.Lock()
	defer s.turn.Unlock()
	switch req.Method {
	case http.MethodGet, http.MethodPut, http.MethodPatch:
	case http.MethodDelete:
		if s.rel.since(16) {
			break
		}
		fallthrough
	default:
		s.hangUp(w, "Invalid HTTP Method: Unsupported HTTP method.")
		return
	}
	switch {
	case len(req.TransferEncoding) > 0 || req.ContentLength < 0:
		s.hangUp(w, "Invalid request.")
		return
	case req.ContentLength > s.limit:
		s.hangUp(w, fmt.Sprintf("Request payload with size %d is larger than the limit of %d allowed by server.", req.ContentLength, s.limit))
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the client has gone
	}
	name := req.Method[:1] + strings.ToLower(req.Method[1:])
	if len(body) > 0 {
		s.log.print("The API server received a %s request on %q with body %q.", name, req.URL.Path, body)
	} else {
		s.log.print("The API server received a %s request on %q.", name, req.URL.Path)
	}
	do, err := s.route(req.Method, req.URL.Path, body)
	var refused *badRequest
	if errors.As(err, &refused) {
		s.log.print("%s", refused.text)
		s.answer(w, reply{fault: refused.text})
		return
	}
	select {
	case <-s.fatal:
		return
	default:
	}
	s.answer(w, do(s.vm))
}

func (s *server) answer(w http.ResponseWriter, r reply) {
	if r.deprecated {
		w.Header().Set("Deprecation", "true")
	}
	switch {
	case r.fault != "":
		s.log.print("Received Error. Status code: 400 Bad Request. Message: %s", r.fault)
		write(w, http.StatusBadRequest, map[string]string{"fault_message": r.fault})
	case r.body != nil:
		s.log.print("The request was executed successfully. Status code: 200 OK.")
		write(w, http.StatusOK, r.body)
	default:
		s.log.print("The request was executed successfully. Status code: 204 No Content.")
		w.Header().Set("Server", "Firecracker API")
		w.WriteHeader(http.StatusNoContent)
	}
	if r.dirty {
		s.once.Do(func() {
			http.NewResponseController(w).Flush()
			close(s.fatal)
		})
	}
}

func write(w http.ResponseWriter, status int, body any) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		panic(err) // none of our types fails to encode
	}
	raw := bytes.TrimSuffix(text.Bytes(), []byte("\n"))
	h := w.Header()
	h.Set("Server", "Firecracker API")
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	w.Write(raw) // a client that has gone does not read it
}

// hangUp answers what is no request at all.
func (s *server) hangUp(w http.ResponseWriter, why string) {
	text := fmt.Sprintf("{ \"error\": %s }", `"`+why+"\nAll previous unanswered requests will be dropped.\"")
	h := w.Header()
	h.Set("Server", "Firecracker API")
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("Connection", "close")
	w.WriteHeader(http.StatusBadRequest)
	io.WriteString(w, text)
}
