package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	spore "github.com/sporevm/spore"
)

// Probe says when a sandbox counts as ready. At most one of its fields is set; with none, it is ready when its agent
// answers.
type Probe struct {
	Command []string // run as the image's user until it exits with 0
	Port    int      // a TCP port that must accept connections
	// HTTPPort and HTTPPath make a request that must be answered with a status from 200 to 399.
	HTTPPort int
	HTTPPath string
	// Interval is the time from one attempt to the next; half a second when 0.
	Interval time.Duration
	// AttemptTimeout bounds one attempt; ten seconds when 0.
	AttemptTimeout time.Duration
}

// Validate says whether the probe makes sense. Its errors are spore.CodeInvalid with the name of the field below
// prefix, as the API spells it.
func (p Probe) Validate(prefix string) error {
	kinds := 0
	for _, set := range []bool{len(p.Command) > 0, p.Port != 0, p.HTTPPort != 0 || p.HTTPPath != ""} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return spore.Invalidf(prefix, "a readiness probe is a command, a port or an HTTP path, not several of them")
	case p.Port < 0 || p.Port > 65535:
		return spore.Invalidf(prefix+".port", "%d is not a TCP port", p.Port)
	case p.HTTPPath != "" && !strings.HasPrefix(p.HTTPPath, "/"):
		return spore.Invalidf(prefix+".httpPath", "%q does not begin with a slash", p.HTTPPath)
	case (p.HTTPPath != "" || p.HTTPPort != 0) && (p.HTTPPort < 1 || p.HTTPPort > 65535):
		return spore.Invalidf(prefix+".httpPort", "%d is not a TCP port", p.HTTPPort)
	}
	return nil
}

// Ready waits until the probe passes. When ctx ends before, it fails with spore.CodeUnreachable and says what the last
// attempt met.
func (a *Agent) Ready(ctx context.Context, p Probe) error {
	if err := p.Validate("readyProbe"); err != nil {
		return err
	}
	if p.Interval == 0 {
		p.Interval = 500 * time.Millisecond
	}
	if p.AttemptTimeout == 0 {
		p.AttemptTimeout = 10 * time.Second
	}
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, p.AttemptTimeout)
		err := a.probe(attempt, p)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return spore.Errorf(spore.CodeUnreachable, "the sandbox did not become ready: %w", last).
				WithHint("look at the logs of its command and at its console, or give it a longer time or another probe")
		case <-time.After(p.Interval):
		}
	}
}

func (a *Agent) probe(ctx context.Context, p Probe) error {
	switch {
	case len(p.Command) > 0:
		res, err := a.Run(ctx, Command{Path: p.Command[0], Args: p.Command[1:]})
		if err != nil {
			return err
		}
		if res.ExitCode != 0 {
			return fmt.Errorf("%s: %s%s", p.Command[0], res.Status, lastLine(res.Stderr))
		}
		return nil
	case p.Port != 0:
		c, err := a.DialPort(ctx, p.Port)
		if err != nil {
			return err
		}
		return c.Close()
	case p.HTTPPort != 0:
		return a.probeHTTP(ctx, p)
	}
	return a.call(ctx, http.MethodGet, "/health", nil, nil)
}

func lastLine(b []byte) string {
	text := strings.TrimSpace(string(b[max(0, len(b)-500):]))
	if text == "" {
		return ""
	}
	return ": " + text[strings.LastIndexByte(text, '\n')+1:]
}

func (a *Agent) probeHTTP(ctx context.Context, p Probe) error {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return a.DialPort(ctx, p.HTTPPort) },
		DisableKeepAlives: true,
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", p.HTTPPort, p.HTTPPath), nil)
	if err != nil {
		return spore.Invalidf("readyProbe.httpPath", "%v", err)
	}
	res, err := transport.RoundTrip(req) // redirects are an answer, they are not followed
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer)); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return fmt.Errorf("GET %s on port %d answers %s", p.HTTPPath, p.HTTPPort, res.Status)
	}
	return nil
}
