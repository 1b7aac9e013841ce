package node

import (
	"testing"
	"time"
)

func TestIdleness(t *testing.T) {
	start := time.Now()
	type step struct {
		after, used time.Duration
		want        bool
		late        bool // a capture was in the way
	}
	for name, steps := range map[string][]step{
		"idle":            {{0, time.Second, false, false}, {5 * time.Minute, time.Second, false, false}, {10 * time.Minute, 2 * time.Second, true, false}},
		"once":            {{0, 0, false, false}, {10 * time.Minute, 0, true, false}, {20 * time.Minute, 0, false, false}, {40 * time.Minute, 0, false, false}},
		"held up":         {{0, 0, false, false}, {10 * time.Minute, 0, true, true}, {11 * time.Minute, 0, true, false}, {12 * time.Minute, 0, false, false}},
		"busy":            {{0, 0, false, false}, {10 * time.Minute, time.Minute, false, false}, {20 * time.Minute, 2 * time.Minute, false, false}},
		"busy in between": {{0, 0, false, false}, {6 * time.Minute, time.Minute, false, false}, {12 * time.Minute, time.Minute, false, false}, {16 * time.Minute, time.Minute, true, false}},
		"idle again":      {{0, 0, false, false}, {10 * time.Minute, 0, true, false}, {11 * time.Minute, time.Minute, false, false}, {21 * time.Minute, time.Minute, true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var i idleness
			for n, s := range steps {
				got := i.look(start.Add(s.after), s.used, 10*time.Minute)
				if got != s.want {
					t.Errorf("look %d: %v", n, got)
				}
				i.taken = i.taken || got && !s.late
			}
		})
	}
}

func FuzzProcessorTime(f *testing.F) {
	f.Add("77 (a (b) c) R 1 77 77 0 -1 4194304 1 0 0 0 150 25 0 0 20 0 3 0 987654 1 2")
	f.Add("77 (x")
	f.Add("")
	f.Fuzz(func(t *testing.T, stat string) {
		if d, err := parseProcessorTime(stat); err == nil && d < 0 {
			t.Error(d)
		}
	})
}

func TestProcessorTime(t *testing.T) {
	if d, err := parseProcessorTime("77 (a (b) c) R 1 77 77 0 -1 4194304 1 0 0 0 150 25 0 0 20"); d != 1750*time.Millisecond || err != nil {
		t.Error(d, err)
	}
}
