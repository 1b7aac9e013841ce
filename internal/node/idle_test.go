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
	}
	for name, steps := range map[string][]step{
		"idle":            {{0, time.Second, false}, {5 * time.Minute, time.Second, false}, {10 * time.Minute, 2 * time.Second, true}},
		"once":            {{0, 0, false}, {10 * time.Minute, 0, true}, {20 * time.Minute, 0, false}, {40 * time.Minute, 0, false}},
		"busy":            {{0, 0, false}, {10 * time.Minute, time.Minute, false}, {20 * time.Minute, 2 * time.Minute, false}},
		"busy in between": {{0, 0, false}, {6 * time.Minute, time.Minute, false}, {12 * time.Minute, time.Minute, false}, {16 * time.Minute, time.Minute, true}},
		"idle again":      {{0, 0, false}, {10 * time.Minute, 0, true}, {11 * time.Minute, time.Minute, false}, {21 * time.Minute, time.Minute, true}},
	} {
		t.Run(name, func(t *testing.T) {
			var i idleness
			for n, s := range steps {
				if got := i.look(start.Add(s.after), s.used, 10*time.Minute); got != s.want {
					t.Errorf("look %d: %v", n, got)
				}
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
