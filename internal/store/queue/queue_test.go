package queue

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 6: 32 * time.Second, 7: time.Minute, 1 << 40: time.Minute,
	} {
		if got := Backoff(attempt); got != want {
			t.Errorf("attempt %d: %s, want %s", attempt, got, want)
		}
	}
}

func TestGuard(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, nil))
	err := guard(logger, func() error { panic("the roof is on fire") })
	if err == nil || !strings.Contains(err.Error(), "the roof is on fire") {
		t.Errorf("error %v", err)
	}
	if log := out.String(); !strings.Contains(log, "the roof is on fire") || !strings.Contains(log, "TestGuard") {
		t.Errorf("the log does not tell what panicked where: %s", log)
	}
}

func TestQuiet(t *testing.T) {
	var out bytes.Buffer
	away := false
	logger := quiet(slog.New(slog.NewTextHandler(&out, nil)), func() bool { return away })
	logger.Info("a")
	logger.With("x", 1).WithGroup("g").Warn("b")
	logger.With("x", 1).Error("c")
	away = true
	logger.With("x", 1).WithGroup("g").Error("d")
	if log := out.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "msg=c x=1") {
		t.Errorf("logged %q", log)
	}
}
