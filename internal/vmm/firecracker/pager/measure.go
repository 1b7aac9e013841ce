package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Backend is how the memory of a thawed VM gets to it.
type Backend string

const (
	BackendFile Backend = "file" // the VMM maps the memory file, which layers must be flattened into
	BackendUffd Backend = "uffd" // a pager serves base and layers as they lie
)

// Verdict is what a host is like for the two backends.
type Verdict struct {
	// Backend is what pays for a typical thaw with layers: 24 MiB over a base of 256 MiB. Choose knows better for a given one.
	Backend Backend `json:"backend"`
	Reason  string  `json:"reason"` // for people, in a sentence

	Supported   bool   `json:"supported"`             // whether a pager can serve on this host at all
	Unsupported string `json:"unsupported,omitempty"` // why not

	FileFault time.Duration `json:"fileFault"` // until a page of a mapped memory file, in the page cache, is read and written
	UffdFault time.Duration `json:"uffdFault"` // the same by a pager
	CopyRate  int64         `json:"copyRate"`  // bytes a second that are copied where VMs' files lie
	Shares    bool          `json:"shares"`    // files there can share blocks, so that a base need not be copied
}

// typicalFaults is about how many windows a guest of the size of templates touches until it answers.
const typicalFaults = 1500

// Choose tells which backend brings a VM to its first answer sooner, when layers of so many bytes lie over a base of so
// many, as allocated; and why.
func (v Verdict) Choose(layers, base int64) (Backend, string) {
	switch {
	case !v.Supported:
		return BackendFile, "memory files are mapped: " + v.Unsupported
	case layers == 0 && v.FileFault <= v.UffdFault:
		return BackendFile, fmt.Sprintf("there are no layers, and a page of a mapped file costs %v, one of a page server %v", v.FileFault, v.UffdFault)
	}
	written, how := base+layers, "copying the base and the layers"
	if v.Shares {
		written, how = layers, "copying the layers"
	}
	if layers == 0 {
		written = 0
	}
	flatten := time.Duration(float64(written) / float64(max(v.CopyRate, 1)) * float64(time.Second))
	serve := typicalFaults * max(v.UffdFault-v.FileFault, 0)
	reason := fmt.Sprintf("serving pages costs a thaw %v more than mapped ones (%v a page instead of %v), and %s before it would take %v",
		serve.Round(time.Microsecond), v.UffdFault, v.FileFault, how, flatten.Round(time.Microsecond))
	if serve <= flatten {
		return BackendUffd, reason
	}
	return BackendFile, reason
}

const (
	measureTimeout = 10 * time.Second      // of all; it takes a fiftieth of it where nothing is wrong
	measureBudget  = 50 * time.Millisecond // for each of the three measurements

	probeArg    = "probe"
	probeSize   = 32 << 20
	probeStride = 64 << 10 // far enough apart that no page comes with the one before
)

// Measure finds out, in some 200 ms, how this host is best given the memory of thawed VMs whose files lie in dir. It uses
// two processes of its own, as a VMM and its pager are. A host where userfaultfd cannot be used is no error; the Verdict says
// so.
func Measure(ctx context.Context, dir string) (v Verdict, err error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	if dir, err = os.MkdirTemp(dir, ".measure-*"); err != nil {
		return Verdict{}, fmt.Errorf("pager: measure: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if v.CopyRate, v.Shares, err = measureFiles(dir); err != nil {
		return Verdict{}, fmt.Errorf("pager: measure: %w", err)
	}
	switch err := probe(ctx, dir, &v); {
	case spore.CodeOf(err) == spore.CodeUnsupported:
		v.Unsupported = spore.AsError(err).Message
	case err != nil:
		return Verdict{}, err
	default:
		v.Supported = true
	}
	v.Backend, v.Reason = v.Choose(24<<20, 256<<20)
	return v, nil
}

// measureFiles writes a file until it is big enough or the time is over, and tries to share its blocks.
func measureFiles(dir string) (rate int64, shares bool, err error) {
	f, err := os.Create(filepath.Join(dir, "written"))
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i>>12 | 1)
	}
	start, n := time.Now(), int64(0)
	for n < probeSize && (n == 0 || time.Since(start) < measureBudget) {
		if _, err := f.Write(buf); err != nil {
			return 0, false, err
		}
		n += int64(len(buf))
	}
	rate = int64(float64(n) / max(time.Since(start), time.Microsecond).Seconds())
	other, err := os.Create(filepath.Join(dir, "shared"))
	if err != nil {
		return 0, false, err
	}
	defer other.Close()
	return rate, unix.IoctlFileClone(int(other.Fd()), int(f.Fd())) == nil, nil
}

// probeResult is what the process of a probe answers.
type probeResult struct {
	FileFault time.Duration `json:"fileFault"`
	UffdFault time.Duration `json:"uffdFault"`
	Failure   *failure      `json:"failure,omitempty"`
}

// probe starts the process that plays the VMM.
func probe(ctx context.Context, dir string, v *Verdict) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "pager", probeArg, dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	// Its pager ends with it, but perhaps not yet.
	cleanErr := Clean(context.WithoutCancel(ctx), probeConfig(dir))
	if err == nil {
		err = cleanErr
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("pager: measure: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var r probeResult
	if err := decodeStrict(out, &r); err != nil {
		return fmt.Errorf("pager: measure: %w", err)
	}
	if r.Failure != nil {
		return r.Failure.err()
	}
	v.FileFault, v.UffdFault = r.FileFault, r.UffdFault
	return nil
}

func probeConfig(dir string) Config {
	return Config{ID: "measure", Dir: dir, Socket: filepath.Join(dir, "vmm.sock"), UID: os.Geteuid(), GID: os.Getegid(), Connect: measureTimeout}
}

// probeMain is the process that plays the VMM.
func probeMain(dir string) int {
	var r probeResult
	if err := r.measure(dir); err != nil {
		r = probeResult{Failure: newFailure(err)}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r *probeResult) measure(dir string) (err error) {
	u, err := newUffd()
	if err != nil {
		return err
	}
	defer u.close()
	fd, err := unix.MemfdCreate("spore-measure", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	defer f.Close()
	data := make([]byte, probeStride)
	for i := range data {
		data[i] = byte(i>>8 | 1)
	}
	for off := int64(0); off < probeSize; off += int64(len(data)) {
		if _, err := f.WriteAt(data, off); err != nil {
			return fmt.Errorf("memory file: %w", err)
		}
	}
	mapped, err := unix.Mmap(fd, 0, probeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map the memory file: %w", err)
	}
	defer unix.Munmap(mapped)
	r.FileFault = touch(mapped)

	spec, err := NewSpec(context.Background(), fmt.Sprintf("/proc/self/fd/%d", fd), probeSize, nil, dir)
	if err != nil {
		return err
	}
	defer spec.Close()
	cfg := probeConfig(dir)
	h, err := Start(context.Background(), cfg, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Stop(context.Background())) }()
	served, err := unix.Mmap(-1, 0, probeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map memory: %w", err)
	}
	if err := u.register(served); err != nil {
		return spore.Errorf(spore.CodeUnsupported, "this kernel does not let userfaultfd watch memory").WithCause(err)
	}
	conn, err := dial(cfg.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	text, err := json.Marshal([]map[string]uint64{{
		"base_host_virt_addr": addressOf(served), "size": probeSize, "offset": 0, "page_size": uint64(os.Getpagesize()),
	}})
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(int(u)), nil); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	done := make(chan time.Duration, 1)
	go func() { done <- touch(served) }()
	select {
	case r.UffdFault = <-done:
		return nil
	case <-h.Done():
		// The one who touches stands still. This process ends, and with it all that it has.
		return errors.Join(errors.New("the page server ended"), h.Err())
	}
}

// touch reads and writes pages that are far apart, until the time is over, and answers what one costs.
func touch(mem []byte) time.Duration {
	start, n := time.Now(), 0
	for off := 0; off < len(mem); off += probeStride {
		mem[off]++
		if n++; n%16 == 0 && time.Since(start) > measureBudget {
			break
		}
	}
	return time.Since(start) / time.Duration(n)
}
