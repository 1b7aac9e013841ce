package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/trial"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// The trial boot ends when the guest has said nothing for trialSilence, as one does that is stuck, or at the latest after
// trialTime. A KVM that works needs a second or two; one that is itself emulated, on a busy host, much longer.
const (
	trialSilence = 30 * time.Second
	trialTime    = 2 * time.Minute
)

// verdict is what the trial boot came to. It holds until the host or Firecracker changes.
type verdict struct {
	Works  bool   `json:"works"`
	Reason string `json:"reason,omitempty"` // why not
	BootID string `json:"bootId"`
	Binary string `json:"binary"`
	Mtime  int64  `json:"mtime"`
}

// Names in the state directory.
const (
	nameVerdict = "firecracker-kvm.json"
	trialDir    = "firecracker-trial"
)

// judge decides whether guests run here. That /dev/kvm opens proves nothing: a nested host can have one on which no
// kernel gets through its boot. So KVM is believed once it has brought a kernel to the start of its init. The caller holds
// e.mu.
func (e *Engine) judge(ctx context.Context, p platform) error {
	if err := checkKVM(); err != nil {
		return err
	}
	if e.opts.Kernel == "" {
		return nil // nothing to try it with
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	b := p.newest()
	want := verdict{BootID: boot, Binary: b.Firecracker, Mtime: b.mtime}
	v := e.verdict
	if v == nil {
		v = e.remembered()
	}
	if v == nil || v.BootID != want.BootID || v.Binary != want.Binary || v.Mtime != want.Mtime {
		began := time.Now()
		err := e.trial(ctx, p)
		if errors.Is(err, errEnded) {
			// A guest that got stuck will do so again. One that ended may have met a hiccup, above all where KVM is itself emulated, and
			// a wrong verdict would keep a server from its sandboxes.
			e.log.Warn("the trial of Firecracker is made once more", "error", err)
			err = e.trial(ctx, p)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if want.Works = err == nil; err != nil {
			want.Reason = err.Error()
		}
		e.log.Info("tried Firecracker", "works", want.Works, "reason", want.Reason, "took", time.Since(began).Round(time.Millisecond))
		if !errors.Is(err, errEnded) { // the next server tries again
			if err := e.remember(want); err != nil {
				e.log.Warn("the verdict on Firecracker will not be remembered", "error", err)
			}
		}
		v = &want
	}
	e.verdict = v
	if !v.Works {
		return spore.Errorf(spore.CodeUnsupported, "Firecracker does not run guests on this host: %s", v.Reason).
			WithHint("use the QEMU engine, which can do without KVM, or a host with hardware virtualisation")
	}
	return nil
}

// believe notes that a guest of this binary answered, which proves more than a trial: a server that starts beside VMs that run
// makes none, and cannot be misled by one that fails.
func (e *Engine) believe(b *Binary) {
	// An adopted VM's binary may have been replaced since. And while others wait for a trial there will be another connection.
	if b.mtime == 0 || e.believed.Load() || !e.mu.TryLock() {
		return
	}
	defer e.mu.Unlock()
	boot, err := bootID()
	old := e.verdict
	if old == nil {
		old = e.remembered()
	}
	// What a guest of an older binary proves must not displace what is known of the newest, which new VMs start on.
	if err == nil && (old == nil || !old.Works || old.BootID != boot) {
		v := verdict{Works: true, BootID: boot, Binary: b.Firecracker, Mtime: b.mtime}
		err = e.remember(v)
		e.verdict = &v
	}
	if err != nil {
		e.log.Warn("that guests run will not be remembered", "error", err)
	}
	e.believed.Store(true)
}

func (e *Engine) remembered() *verdict {
	if e.opts.StateDir == "" {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(e.opts.StateDir, nameVerdict))
	if err != nil {
		return nil // none, or unreadable: the trial is made again
	}
	v, ok := parseVerdict(text)
	if !ok {
		return nil
	}
	return &v
}

func parseVerdict(text []byte) (verdict, bool) {
	var v verdict
	if err := json.Unmarshal(text, &v); err != nil {
		return verdict{}, false
	}
	return v, v.BootID != "" && v.Binary != "" && v.Works == (v.Reason == "")
}

func (e *Engine) remember(v verdict) error {
	if e.opts.StateDir == "" {
		return nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(e.opts.StateDir, 0o700); err != nil {
		return err
	}
	return writeAside(filepath.Join(e.opts.StateDir, nameVerdict), text)
}

// trialCmdline makes the kernel say little, since where KVM is emulated each character on the console takes a
// millisecond, and stop, having found no init, with a message that it never withholds.
const trialCmdline = "loglevel=6 rdinit=/none"

// signs on the console of a kernel that has come through its own start: it hands over to init, or finds none.
var signs = [][]byte{[]byte("as init process"), []byte("Unable to mount root fs"), []byte("No working init found")}

func cameThrough(console []byte) bool {
	return slices.ContainsFunc(signs, func(sign []byte) bool { return bytes.Contains(console, sign) })
}

var errEnded = errors.New("a guest ended in its boot")

// trial boots a small guest and waits for a sign of life.
func (e *Engine) trial(ctx context.Context, p platform) (err error) {
	dir, leave, err := trial.Place(ctx, e.opts.StateDir, trialDir, e.Clean)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	ctx, cancel := context.WithTimeout(ctx, e.trialTime)
	defer cancel()
	m, err := e.boot(ctx, p, vmm.Config{
		ID: "kvm-trial", Dir: dir, VCPUs: 1, MemoryMiB: 256, Kernel: e.opts.Kernel, Initrd: e.opts.Initrd,
		Cmdline: trialCmdline, Memory: filepath.Join(dir, "memory"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Kill(context.Background())) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	silent := time.NewTimer(e.trialSilence)
	defer silent.Stop()
	var before []byte
	for {
		text, err := m.Console(vmlog.Keep)
		if err != nil {
			return err
		}
		if !bytes.Equal(text, before) {
			before = text
			silent.Reset(e.trialSilence)
		}
		if cameThrough(text) {
			return nil
		}
		select {
		case <-m.Done():
			// A kernel without an init ends the VM as it says so, which may be since the look above.
			if text, err := m.Console(vmlog.Keep); err != nil || cameThrough(text) {
				return err
			}
			return fmt.Errorf("%w: %s", errEnded, m.jail.lastWords())
		case <-silent.C:
			return fmt.Errorf("a guest got stuck in its boot, silent for %s; last it said: %q", e.trialSilence, lastLines(text, 1))
		case <-ctx.Done():
			return fmt.Errorf("a guest did not get through its boot in %s; last it said: %q", e.trialTime, lastLines(text, 1))
		case <-tick.C:
		}
	}
}
