package firecracker

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// The trial is bounded, remembered until the binary changes, and obeyed.
func TestTrial(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	open := func() *Engine {
		e := doubleEngine(t, "", func(o *Options) { o.StateDir, o.Kernel = dir, tinyKernel(t) })
		e.trialSilence, e.trialTime = 200*time.Millisecond, time.Minute
		return e
	}
	_, err := open().Probe(t.Context()) // the stand-in's guest is no kernel that says it came through
	if spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), "in its boot") {
		t.Fatalf("%v", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, nameVerdict))
	must(t, err)
	v, ok := parseVerdict(text)
	if !ok || v.Works || v.Reason == "" {
		t.Fatalf("%s", text)
	}
	v.Reason = "the dog ate it"
	must(t, open().remember(v))
	if _, err := open().Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "the dog ate it") {
		t.Errorf("the trial is not remembered: %v", err)
	}
	e := open()
	v.Works, v.Reason = true, ""
	must(t, e.remember(v))
	if info, err := e.Probe(t.Context()); err != nil || info.Accel != "kvm" {
		t.Errorf("%+v, %v", info, err)
	}
	e = open()
	v.Mtime++ // of a binary that was replaced
	must(t, e.remember(v))
	if _, err := e.Probe(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Errorf("a verdict on another binary is obeyed: %v", err)
	}
}

// A kernel that comes through its boot and ends at once has come through, however soon the VM is gone.
func TestTrialOfShortLife(t *testing.T) {
	e := realEngine(t, func(o *Options) { o.StateDir, o.Kernel = t.TempDir(), tinyPanic(t) })
	for range 5 {
		p, err := e.platform(t.Context())
		must(t, err)
		must(t, e.trial(t.Context(), p))
	}
}

// A trial whose server died in it leaves a VM, which the next one ends.
func TestTrialLeftBehind(t *testing.T) {
	needRoot(t)
	state := t.TempDir()
	cfg := tinyConfig(t)
	cfg.Dir = filepath.Join(state, trialDir)
	must(t, os.Mkdir(cfg.Dir, 0o700))
	vm, err := doubleEngine(t, "", nil).Boot(t.Context(), cfg)
	must(t, err)
	killAtEnd(t, vm)
	must(t, vm.Release())
	e := doubleEngine(t, "", func(o *Options) { o.StateDir, o.Kernel = state, tinyKernel(t) })
	e.trialSilence, e.trialTime = 200*time.Millisecond, time.Second
	if _, err := e.Probe(t.Context()); spore.CodeOf(err) != spore.CodeUnsupported {
		t.Fatal(err)
	}
	eventually(t, "the VM that was left behind ends", func() bool { _, err := startTime(vm.PID()); return err != nil })
	if _, err := os.Stat(cfg.Dir); !os.IsNotExist(err) {
		t.Errorf("the trial's directory is left: %v", err)
	}
}

// A guest that answers is believed more than any trial.
func TestGuestThatAnswersIsProof(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	vm, _ := bootTiny(t, doubleEngine(t, "", func(o *Options) { o.StateDir = dir }))
	conn, err := vm.DialPort(t.Context(), vmm.PortControl)
	must(t, err)
	defer conn.Close()
	// A guest that is slow is connected to later; once it has answered it has been.
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(conn, "count\n")
	must(t, err)
	_, err = bufio.NewReader(conn).ReadString('\n')
	must(t, err)
	e := doubleEngine(t, "", func(o *Options) { o.StateDir, o.Kernel = dir, tinyKernel(t) })
	e.trialSilence, e.trialTime = 200*time.Millisecond, time.Minute
	if info, err := e.Probe(t.Context()); err != nil || info.Accel != "kvm" {
		t.Errorf("%+v, %v", info, err)
	}
}
