package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/agent"
)

// These are spoken by both ends and declared at the guest's.
type (
	// Config is the process part of an image's configuration.
	Config = agent.Config
	// Entrypoint says what has become of the image's own command.
	Entrypoint = agent.Entrypoint
	// Identity is what makes a thawed sandbox different from every other thaw of the same state.
	Identity = agent.Identity
	// Address is the configuration of one network interface.
	Address = agent.Address
	// Facts are what the agent says about a sandbox that it has given an identity.
	Facts = agent.Facts
	// Status is the agent's account of itself and of the image's command.
	Status = agent.Status
)

// Configure gives the agent the image's configuration and starts the image's command, if it has one. It is done once in
// the life of a template: sandboxes thawed from it are configured. A second call fails with spore.CodeConflict; a
// command that cannot be started with spore.CodeInvalid or spore.CodeNotFound, and the sandbox is usable all the same.
func (a *Agent) Configure(ctx context.Context, c Config) (Entrypoint, error) {
	var e Entrypoint
	err := a.call(ctx, http.MethodPost, "/configure", c, &e)
	return e, err
}

// entropySize is how much randomness a thawed guest gets: what its generator takes, twice over.
const entropySize = 64

// Greet gives a sandbox its identity after a thaw. Entropy is drawn and the clock is read here when the caller has left
// them empty, which is the right thing to do.
func (a *Agent) Greet(ctx context.Context, id Identity) (Facts, error) {
	if len(id.Entropy) == 0 {
		id.Entropy = make([]byte, entropySize)
		rand.Read(id.Entropy) // never fails: crypto/rand ends the process instead
	}
	s, err := a.connected(ctx)
	if err != nil {
		return Facts{}, err
	}
	if id.UnixNano == 0 {
		id.UnixNano = time.Now().Add(s.RTT() / 2).UnixNano()
	}
	var f Facts
	err = a.call(ctx, http.MethodPost, "/init", id, &f)
	return f, err
}

// Status asks how the agent and the image's command are.
func (a *Agent) Status(ctx context.Context) (Status, error) {
	var s Status
	err := a.call(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// Quiesce writes the guest's file systems out, so that a freeze right after it loses nothing that a program has written.
func (a *Agent) Quiesce(ctx context.Context) error {
	return a.call(ctx, http.MethodPost, "/quiesce", nil, nil)
}

// Poweroff asks for an orderly power-off and returns when the guest has agreed. Processes that have not ended after
// grace are killed.
func (a *Agent) Poweroff(ctx context.Context, grace time.Duration) error {
	return a.call(ctx, http.MethodPost, "/poweroff", agent.PoweroffRequest{GraceMS: grace.Milliseconds()}, nil)
}

// Logs returns the output of the image's command that is still kept, the last tail bytes of it when tail is not 0.
// With follow it goes on until the command ends or the reader is closed.
func (a *Agent) Logs(ctx context.Context, tail int, follow bool) (io.ReadCloser, error) {
	path := "/logs?"
	if tail > 0 {
		path += "tail=" + strconv.Itoa(tail) + "&"
	}
	if follow {
		path += "follow=true"
	}
	res, err := a.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// call makes one request of an internal route.
func (a *Agent) call(ctx context.Context, method, path string, in, out any) error {
	res, err := a.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
	} else {
		err = json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out)
	}
	if err != nil {
		return unreachable(err)
	}
	return nil
}

// maxAnswer bounds what is read of an agent's answer: the guest is not trusted.
const maxAnswer = 1 << 20

// send makes a request and turns a refusal into a typed error. The caller closes the body.
func (a *Agent) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := a.transport.RoundTrip(req)
	if err != nil {
		var typed *spore.Error
		if errors.As(err, &typed) {
			return nil, typed
		}
		return nil, unreachable(err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, refusal(res)
}

// refusal reads the agent's {code, message}.
func refusal(res *http.Response) error {
	var p struct {
		Message string `json:"message"`
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil || p.Message == "" {
		p.Message = res.Status
	}
	code := spore.CodeInternal
	switch res.StatusCode {
	case http.StatusBadRequest:
		code = spore.CodeInvalid
	case http.StatusNotFound:
		code = spore.CodeNotFound
	case http.StatusConflict:
		code = spore.CodeConflict
	case http.StatusInsufficientStorage:
		code = spore.CodeNoSpace
	}
	return spore.Errorf(code, "%s", p.Message)
}
