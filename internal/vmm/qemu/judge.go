package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// verdict is what the trial boot under KVM came to. It holds until the host or QEMU changes.
type verdict struct {
	Accel  string `json:"accel"`
	Reason string `json:"reason,omitempty"` // why not KVM
	BootID string `json:"bootId"`
	Binary string `json:"binary"`
	Mtime  int64  `json:"mtime"`
	Kernel string `json:"kernel"`
}

// Names in the state directory.
const (
	nameVerdict = "qemu-accel.json"
	trialDir    = "qemu-trial"
)

// judge decides on the accelerator. That /dev/kvm opens proves nothing: a nested host can have one on which no kernel
// gets through its boot. So KVM is believed once it has brought a kernel to the start of its init. The caller holds e.mu.
func (e *Engine) judge(ctx context.Context, hv *hypervisor, kernel, initrd string) (verdict, error) {
	if e.opts.Accel == AccelTCG {
		return verdict{Accel: AccelTCG, Reason: "software emulation was asked for"}, nil
	}
	if v := e.verdict; v != nil && v.Binary == hv.path && v.Mtime == hv.mtime {
		return e.accept(*v)
	}
	boot, err := bootID()
	if err != nil {
		return verdict{}, err
	}
	want := verdict{BootID: boot, Binary: hv.path, Mtime: hv.mtime}
	if v, ok := e.remembered(want); ok {
		e.verdict = &v
		return e.accept(v)
	}
	want.Accel = AccelTCG
	switch f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); {
	case errors.Is(err, fs.ErrNotExist):
		want.Reason = "this host has no /dev/kvm"
		return e.accept(want) // not remembered: a module may be loaded any moment
	case err != nil:
		want.Reason = fmt.Sprintf("/dev/kvm cannot be opened: %v", err)
		return e.accept(want)
	default:
		f.Close()
	}
	if kernel == "" {
		if e.opts.Accel == AccelKVM { // the first VM to boot brings a kernel, and is refused if KVM does not run it
			want.Accel = AccelKVM
			return want, nil
		}
		want.Reason = "KVM has not been tried yet, for want of a kernel"
		return want, nil
	}
	want.Kernel = kernel
	began := time.Now()
	err = e.trial(ctx, hv, kernel, initrd)
	switch {
	case ctx.Err() != nil:
		return verdict{}, ctx.Err()
	case err != nil:
		want.Reason = err.Error()
	default:
		want.Accel = AccelKVM
	}
	e.log.Info("tried KVM", "accel", want.Accel, "reason", want.Reason, "took", time.Since(began).Round(time.Millisecond))
	e.verdict = &want
	if err := e.remember(want); err != nil {
		e.log.Warn("the verdict on KVM will not be remembered", "error", err)
	}
	return e.accept(want)
}

func (e *Engine) accept(v verdict) (verdict, error) {
	if e.opts.Accel == AccelKVM && v.Accel != AccelKVM {
		return verdict{}, spore.Errorf(spore.CodeUnsupported, "KVM was asked for and does not work here: %s", v.Reason).
			WithHint("start the server with software emulation allowed, or on a host with hardware virtualisation")
	}
	return v, nil
}

func (e *Engine) remembered(want verdict) (verdict, bool) {
	if e.opts.StateDir == "" {
		return verdict{}, false
	}
	text, err := os.ReadFile(filepath.Join(e.opts.StateDir, nameVerdict))
	if err != nil {
		return verdict{}, false // none, or unreadable: the trial is made again
	}
	v, ok := parseVerdict(text)
	return v, ok && v.BootID == want.BootID && v.Binary == want.Binary && v.Mtime == want.Mtime
}

func parseVerdict(text []byte) (verdict, bool) {
	var v verdict
	if err := json.Unmarshal(text, &v); err != nil {
		return verdict{}, false
	}
	return v, v.Accel == AccelKVM || v.Accel == AccelTCG && v.Reason != ""
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
	aside := filepath.Join(e.opts.StateDir, nameVerdict+".new")
	if err := os.WriteFile(aside, text, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(e.opts.StateDir, nameVerdict))
}

// trialCmdline makes the kernel say little, since where KVM is emulated each character on the console takes a
// millisecond, and stop, having found no init, with a message that it never withholds.
const trialCmdline = "loglevel=6 panic=0 rdinit=/none"

// signs on the console of a kernel that has come through its own start: it hands over to init, or finds none.
var signs = [][]byte{[]byte("as init process"), []byte("Unable to mount root fs"), []byte("No working init found")}

// trial boots a small guest under KVM and waits for a sign of life.
func (e *Engine) trial(ctx context.Context, hv *hypervisor, kernel, initrd string) (err error) {
	if err := checkKernel(kernel); err != nil {
		return err
	}
	dir, leave, err := trial.Place(ctx, e.opts.StateDir, trialDir, e.Clean)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	ctx, cancel := context.WithTimeout(ctx, e.trialTime)
	defer cancel()
	p := platform{hypervisor: hv, accel: AccelKVM, cpu: "host", cpuName: "host"}
	m, err := e.boot(ctx, p, vmm.Config{
		ID: "kvm-trial", Dir: dir, VCPUs: 1, MemoryMiB: 256, Kernel: kernel, Initrd: initrd,
		Cmdline: trialCmdline, Memory: filepath.Join(dir, "memory"),
	})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, m.Kill(context.Background()), m.closeMemory(), m.work.close())
	}()
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
		for _, sign := range signs {
			if bytes.Contains(text, sign) {
				return nil
			}
		}
		select {
		case <-m.Done():
			return fmt.Errorf("a guest ended in its boot under KVM: %s", m.lastWords())
		case <-silent.C:
			return fmt.Errorf("a guest got stuck in its boot under KVM, silent for %s; last it said: %q", e.trialSilence, vmlog.LastLines(text, 1))
		case <-ctx.Done():
			return fmt.Errorf("a guest did not get through its boot under KVM in %s; last it said: %q", e.trialTime, vmlog.LastLines(text, 1))
		case <-tick.C:
		}
	}
}
