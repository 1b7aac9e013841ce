package main

import (
	"sync"
	"time"
)

// absenceGrace is how long the host may be away before its session is given up. A thaw looks like a short absence.
const absenceGrace = time.Second

// absence has the host's session given up when the host has been away for a while.
type absence struct {
	away  func() bool                 // whether no host is connected now
	begin func() (giveUp func() bool) // see guestPort; nil for a port that has no session

	mu      sync.Mutex
	waiting bool
}

// note is called whenever it is seen that no host is connected.
func (a *absence) note() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.begin == nil || a.waiting {
		return
	}
	a.waiting = true
	giveUp := a.begin()
	time.AfterFunc(absenceGrace, func() {
		a.mu.Lock()
		a.waiting = false
		a.mu.Unlock()
		// A host that came and made a session in the meantime has a while of its own.
		if a.away() && !giveUp() {
			a.note()
		}
	})
}
