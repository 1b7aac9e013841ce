package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// eventStream writes server-sent events. The answer begins with the first event or heartbeat, so that a refusal before
// it can still be an ordinary one.
type eventStream struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	mu      sync.Mutex
	started bool
	stop    chan struct{}
	done    sync.WaitGroup
}

// newEventStream starts the heartbeat; close ends it.
func newEventStream(w http.ResponseWriter, every time.Duration) *eventStream {
	s := &eventStream{w: w, rc: http.NewResponseController(w), stop: make(chan struct{})}
	s.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				if s.write([]byte(": still here\n\n")) != nil {
					return
				}
			}
		}
	})
	return s
}

func (s *eventStream) close() {
	close(s.stop)
	s.done.Wait()
}

// send writes one event; id may be empty.
func (s *eventStream) send(event, id string, data any) error {
	body, err := json.Marshal(data)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if id != "" {
		fmt.Fprintf(&b, "id: %s\n", id)
	}
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", event, body)
	return s.write(b.Bytes())
}

func (s *eventStream) write(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", "text/event-stream")
		s.w.Header().Set("X-Accel-Buffering", "no")
		s.w.WriteHeader(http.StatusOK)
	}
	if _, err := s.w.Write(p); err != nil {
		return err
	}
	return s.rc.Flush()
}

// begun says whether the answer has begun.
func (s *eventStream) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// fail answers err: as an ordinary refusal when nothing was sent yet, else as an event.
func (s *eventStream) fail(ctx context.Context, err error) error {
	if !s.begun() {
		return err
	}
	// The client may be gone, which is why err came up; then there is nobody to tell.
	if sendErr := s.send("error", "", shownError(ctx, err)); sendErr != nil {
		logOf(ctx).Debug("event not delivered", "err", sendErr)
	}
	return nil
}
