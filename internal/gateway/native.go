package gateway

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

// native serves the native API. Its methods are spread over the files named for their nouns.
type native struct {
	svc    Service
	opt    Options
	tokens artifactTokens
}

var _ api.StrictServerInterface = (*native)(nil)

// streamed is the answer of an operation that writes it itself.
type streamed func(w http.ResponseWriter) error

func (s streamed) VisitWatchJobResponse(w http.ResponseWriter) error      { return s(w) }
func (s streamed) VisitInstallKernelResponse(w http.ResponseWriter) error { return s(w) }
func (s streamed) VisitCheckResponse(w http.ResponseWriter) error         { return s(w) }
func (s streamed) VisitGetMetricsResponse(w http.ResponseWriter) error    { return s(w) }

func (s streamed) VisitGetArtifactContentResponse(w http.ResponseWriter) error  { return s(w) }
func (s streamed) VisitHeadArtifactContentResponse(w http.ResponseWriter) error { return s(w) }

const (
	defaultLimit = 100
	maxLimit     = 1000
)

func pageLimit(limit int) (int, error) { return inRange("limit", limit, defaultLimit, maxLimit) }

// inRange reads an optional number of at least 1.
func inRange(field string, n, fallback, most int) (int, error) {
	if n == 0 {
		return fallback, nil
	}
	if n < 0 || n > most {
		return 0, spore.Invalidf(field, "%d is out of range", n).WithHint("between 1 and %d", most)
	}
	return n, nil
}

func labelFilter(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	labels := map[string]string{}
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, spore.Invalidf("label", "%q is not key=value", pair)
		}
		if old, twice := labels[key]; twice && old != value {
			return nil, spore.Invalidf("label", "%q cannot be two things at once", key)
		}
		labels[key] = value
	}
	return labels, nil
}

// oneOf refuses a value that is not a key of the state machine or table known.
func oneOf[S ~string, V any](field string, known map[S]V, values ...S) error {
	for _, v := range values {
		if _, ok := known[v]; !ok && v != "" {
			names := map[string]bool{}
			for k := range known {
				names[string(k)] = true
			}
			return spore.Invalidf(field, "there is no %q", v).WithHint("one of %s", strings.Join(sortedKeys(names), ", "))
		}
	}
	return nil
}

const maxTTLSeconds = 3153600000 // a hundred years; more does not fit what Go calls a duration

func ttl(seconds int64) (time.Duration, error) {
	if seconds < 0 || seconds > maxTTLSeconds {
		return 0, spore.Invalidf("ttlSeconds", "%d is out of range", seconds).WithHint("between 0 (no end) and %d", maxTTLSeconds)
	}
	return time.Duration(seconds) * time.Second, nil
}

func endAction(a spore.EndAction) error {
	return oneOf("onEnd", map[spore.EndAction]bool{spore.EndKill: true, spore.EndPause: true}, a)
}

func (n *native) lifetime(seconds int64, onEnd spore.EndAction) (time.Duration, error) {
	if err := endAction(onEnd); err != nil {
		return 0, err
	}
	return ttl(seconds)
}

var keyForm = regexp.MustCompile(`^[!-~]{1,255}$`)

func (n *native) idempotency(ctx context.Context, key string) (center.Idempotency, error) {
	if key == "" {
		return center.Idempotency{}, nil
	}
	if !keyForm.MatchString(key) {
		return center.Idempotency{}, spore.Invalidf("Idempotency-Key", "is not 1 to 255 visible ASCII characters")
	}
	digest, _ := ctx.Value(keyDigest).(string)
	return center.Idempotency{Caller: "owner", Key: key, Digest: digest}, nil
}

// untilClosing is ctx that also ends when the server shuts down.
func (n *native) untilClosing(ctx context.Context) (context.Context, context.CancelFunc) {
	return endWith(ctx, n.opt.Closing)
}

func endWith(ctx context.Context, closing <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if closing != nil {
		go func() {
			select {
			case <-closing:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}
