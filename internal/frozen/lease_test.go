package frozen

import (
	"sync"
	"testing"
)

// Whoever looks while leases come and go finds each of them whole or not at all.
func TestLeasesComeAndGo(t *testing.T) {
	s := openStore(t, Options{})
	done := make(chan struct{})
	var all sync.WaitGroup
	defer all.Wait()
	defer close(done)
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				var l *lease
				err := s.publishing(func() (err error) {
					l, err = s.newLease("test", []string{"mem-1"})
					return err
				})
				if err == nil {
					err = l.release()
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	held := must[*lease](t)(s.newLease("held", []string{"mem-2"}))
	for range 1000 {
		found := 0
		for _, r := range must[[]Root](t)(s.leases(false)) {
			if r.Pieces[0] == "mem-2" {
				found++
			}
		}
		if found != 1 {
			t.Fatalf("a lease that is held is found %d times", found)
		}
	}
	if err := held.release(); err != nil {
		t.Error(err)
	}
}
