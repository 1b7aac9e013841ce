package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		var session atomic.Int32
		given := make(chan int32, 4)
		a := absence{
			away: away.Load,
			begin: func() func() bool {
				was := session.Load()
				return func() bool {
					if session.Load() != was {
						return false
					}
					given <- was
					return true
				}
			},
		}
		elapse := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}

		away.Store(true)
		a.note()
		elapse(absenceGrace / 2)
		away.Store(false)
		elapse(absenceGrace)
		if len(given) != 0 {
			t.Error("a session was given up after a short absence")
		}

		away.Store(true)
		a.note()
		elapse(absenceGrace / 2)
		session.Store(2) // its host has come, and the guest does not know it yet
		a.note()
		elapse(absenceGrace)
		if len(given) != 0 {
			t.Errorf("session %d was given up for an absence before it, or after it was replaced", <-given)
		}
		elapse(absenceGrace)
		if len(given) != 1 || <-given != 2 {
			t.Error("no session was given up after a long absence, or another than the last")
		}
		away.Store(false)
		elapse(2 * absenceGrace)
	})
}
