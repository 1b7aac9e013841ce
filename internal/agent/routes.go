package agent

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
)

// PoweroffRequest says how to power off.
type PoweroffRequest struct {
	// GraceMS is how long processes may take to end before they are killed, in milliseconds.
	GraceMS int64 `json:"graceMs"`
}

// Status is what GET /status answers.
type Status struct {
	Agent      string     `json:"agent"`
	Configured bool       `json:"configured"`
	Entrypoint Entrypoint `json:"entrypoint"`
}

// maxBody bounds the bodies of internal routes.
const maxBody = 8 << 20

// problem is the body of a refusal.
type problem struct {
	Code    int    `json:"code"` // the HTTP status
	Message string `json:"message"`
}

func refuse(w http.ResponseWriter, status int, err error) {
	reply(w, status, problem{status, message(err)})
}

// message is the text of err without the code that the RPC layer puts before it.
func message(err error) string {
	var c *connect.Error
	if errors.As(err, &c) {
		return c.Message()
	}
	return err.Error()
}

// refuseErr answers an error of the shared inner functions.
func refuseErr(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument:
		status = http.StatusBadRequest
	case connect.CodeNotFound:
		status = http.StatusNotFound
	case connect.CodePermissionDenied:
		status = http.StatusForbidden
	case connect.CodeResourceExhausted:
		status = http.StatusInsufficientStorage
	}
	refuse(w, status, err)
}

func reply(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // only for values that cannot be JSON at all
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// receive reads a JSON body; an empty one leaves v as it is.
func receive(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, v)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return false
	}
	return true
}

func (a *Agent) serveConfigure(w http.ResponseWriter, r *http.Request) {
	var c Config
	if !receive(w, r, &c) {
		return
	}
	e, err := a.configure(c)
	switch {
	case errors.Is(err, errConfigured):
		refuse(w, http.StatusConflict, err)
	case err != nil:
		refuseErr(w, err)
	default:
		reply(w, http.StatusOK, e)
	}
}

func (a *Agent) serveInit(w http.ResponseWriter, r *http.Request) {
	var id Identity
	if !receive(w, r, &id) {
		return
	}
	facts, err := a.greet(id)
	if err != nil {
		refuseErr(w, err)
		return
	}
	reply(w, http.StatusOK, facts)
}

func (a *Agent) serveQuiesce(w http.ResponseWriter, _ *http.Request) {
	a.system.Sync()
	w.WriteHeader(http.StatusNoContent)
}

func (a *Agent) servePoweroff(w http.ResponseWriter, r *http.Request) {
	req := PoweroffRequest{GraceMS: 5000}
	if !receive(w, r, &req) {
		return
	}
	if req.GraceMS < 0 || req.GraceMS > int64(time.Hour/time.Millisecond) {
		refuse(w, http.StatusBadRequest, errors.New("graceMs: must be between 0 and an hour"))
		return
	}
	w.WriteHeader(http.StatusAccepted)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return // the host is gone; it will not get what it asked for twice
	}
	a.poweroff(req)
}

func (a *Agent) serveStatus(w http.ResponseWriter, _ *http.Request) {
	a.entry.mu.Lock()
	s := Status{Agent: Version, Configured: a.entry.configured, Entrypoint: a.entry.report}
	a.entry.mu.Unlock()
	if s.Entrypoint.State == "" {
		s.Entrypoint.State = EntrypointNone
	}
	reply(w, http.StatusOK, s)
}

// serveLogs answers the output of the image's command: ?offset=N from there on, ?tail=N the last N bytes, ?follow=true
// until the command ends. The header X-Log-Offset says where the answer begins.
func (a *Agent) serveLogs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var offset int64
	if v := q.Get("offset"); v != "" {
		var err error
		if offset, err = strconv.ParseInt(v, 10, 64); err != nil || offset < 0 {
			refuse(w, http.StatusBadRequest, errors.New("offset: must be a number of bytes"))
			return
		}
	}
	data, start, change := a.entry.log.from(offset)
	if v := q.Get("tail"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			refuse(w, http.StatusBadRequest, errors.New("tail: must be a number of bytes"))
			return
		}
		skip := max(0, int64(len(data))-n)
		data, start = data[skip:], start+skip
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Log-Offset", strconv.FormatInt(start, 10))
	follow := q.Get("follow") == "true"
	out := http.NewResponseController(w)
	for {
		if _, err := w.Write(data); err != nil {
			return
		}
		if !follow || change == nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		start += int64(len(data))
		select {
		case <-change:
		case <-r.Context().Done():
			return
		}
		data, start, change = a.entry.log.from(start)
	}
}
