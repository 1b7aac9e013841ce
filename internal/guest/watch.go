package guest

import (
	"context"
	"time"

	"github.com/sporevm/spore/internal/guest/link"
)

// patience is how a guest is found not to answer any more.
type patience struct {
	look    time.Duration // how often it is looked at
	silence time.Duration // how long it may run without answering
}

// watch ends a session in which a guest that runs does not answer, so that nobody waits for good for what does not come: a host
// hears nothing of a session that the guest has dropped. The next call makes a new one.
func (a *Agent) watch(s *link.Session) {
	look := time.NewTicker(a.patience.look)
	defer look.Stop()
	for {
		select {
		case <-s.Done():
			return
		case <-look.C:
		}
		if s.Streams() > 0 && !a.answers(s, look.C) {
			s.Close()
			return
		}
	}
}

// answers says whether the guest answers before it has run for as long as it may without.
func (a *Agent) answers(s *link.Session, look <-chan time.Time) bool {
	answer := make(chan error, 1)
	go func() { answer <- s.Ping(context.Background()) }() // ends with the session at the latest
	quiet := time.Duration(0)
	for quiet < a.patience.silence {
		select {
		case err := <-answer:
			return err == nil
		case <-look:
		}
		if a.watcher.Runs() {
			quiet += a.patience.look
		}
	}
	a.watcher.Silent(quiet)
	return false
}
