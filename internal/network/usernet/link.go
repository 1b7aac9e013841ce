package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// Options say how sidecars are started. The zero value is usable.
type Options struct {
	// Program and Args start this program as a sidecar; default the program itself with Command.
	Program string
	Args    []string
	// VM is the process of a VM whose sidecar has ended, and that has its TAP device open already. 0 is a VM that is about to start.
	VM int
}

// Link is a sandbox's connection as the server holds it.
type Link struct {
	dir string
}

// Start starts a sidecar for the VM whose directory is dir. The VM can be started at once: what it sends is taken once the
// sidecar is up, which Ready tells. What an earlier sidecar of the directory left is removed; if it still lives, Start
// fails with spore.CodeConflict. A specification that cannot be is spore.CodeInvalid. On error nothing is left.
func Start(dir string, spec Spec, opts Options) (*Link, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return nil, spore.Invalidf("dir", "there is no directory %s", dir).WithCause(err)
	}
	if r, err := readRecord(dir); err == nil && r.lives() {
		return nil, spore.Errorf(spore.CodeConflict, "a network process (%d) still runs in %s", r.PID, dir)
	}
	if err := removeFiles(dir); err != nil {
		return nil, err
	}
	if err := start(dir, spec, opts); err != nil {
		return nil, errors.Join(err, removeFiles(dir))
	}
	return &Link{dir: dir}, nil
}

func start(dir string, spec Spec, opts Options) (err error) {
	if opts.Program == "" {
		// By this name it is the same program even if its file has been replaced meanwhile.
		opts.Program, opts.Args = "/proc/self/exe", []string{"spore", Command, spec.ID}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("usernet: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dir, nameLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return diskError("make the log of the network", err)
	}
	defer log.Close()
	control, err := listen(dir, nameControl)
	if err != nil {
		return err
	}
	defer control.Close()
	files := []*os.File{nil, log, log, nil, control}
	if spec.Tap {
		t, err := tapFor(opts.VM)
		if err != nil {
			return err
		}
		defer t.Close()
		files[fdFrames] = t.packets
		files = append(files, t.events, t.ns)
	} else {
		frames, err := listen(dir, nameFrames)
		if err != nil {
			return err
		}
		defer frames.Close()
		files[fdFrames] = frames
	}
	in, out, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("usernet: %w", err)
	}
	defer in.Close()
	defer out.Close()
	files[0] = in
	child, err := os.StartProcess(opts.Program, opts.Args, &os.ProcAttr{
		Dir: "/", Env: []string{"LC_ALL=C"}, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("usernet: start the network process: %w", err)
	}
	go child.Wait() // it is the VM's, and how it ends its log tells
	// The record comes before the specification, without which the process ends: so none is ever without a record.
	if err := writeRecord(dir, child.Pid); err != nil {
		return errors.Join(err, child.Kill())
	}
	// A pipe takes less than a specification may be; should the process end meanwhile, Ready says so.
	in.Close()
	if err := out.SetWriteDeadline(time.Now().Add(controlTime)); err != nil {
		return errors.Join(fmt.Errorf("usernet: %w", err), child.Kill())
	}
	if _, err := out.Write(text); err != nil && !errors.Is(err, syscall.EPIPE) {
		return errors.Join(fmt.Errorf("usernet: tell the network process what to do: %w", err), child.Kill())
	}
	return nil
}

// Open finds the sidecar of a VM whose directory is dir, which an earlier server started. It fails with spore.CodeNotFound when
// there is none any more.
func Open(dir string) (*Link, error) {
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "no network process was started in %s", dir)
	}
	if err != nil {
		return nil, err
	}
	l := &Link{dir: dir}
	if !r.lives() {
		return nil, l.gone()
	}
	return l, nil
}

// Socket is the path at which the sidecar takes the VM's frames, unless by a TAP device: vmm.NIC.Socket.
func (l *Link) Socket() string { return filepath.Join(l.dir, nameFrames) }

// NetNS is the path of the network namespace in which the VM finds TapName: vmm.NIC.NetNS. It leads there for as long as the sidecar
// lives. It fails with spore.CodeNotFound when the sidecar has ended.
func (l *Link) NetNS() (string, error) {
	r, err := readRecord(l.dir)
	if err != nil || !r.lives() {
		return "", l.gone().WithCause(err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", r.PID, fdNetNS), nil
}

// Ready waits until the sidecar serves. It fails with spore.CodeNotFound, and the reason, when it has ended.
func (l *Link) Ready(ctx context.Context) error {
	_, err := l.ask(ctx, request{})
	return err
}

// Update changes policy and rates, both of them. What the new policy denies is cut when it returns.
func (l *Link) Update(ctx context.Context, egress spore.Egress, rates Rates) error {
	_, err := l.ask(ctx, request{Egress: &egress, Rates: &rates})
	return err
}

// Stats tells what the sidecar has done.
func (l *Link) Stats(ctx context.Context) (Stats, error) { return l.ask(ctx, request{}) }

// Stop ends the sidecar and with it the sandbox's network, and removes what it leaves. It is as good as Clean.
func (l *Link) Stop(ctx context.Context) error { return Clean(ctx, l.dir) }

// Watch waits until the sidecar has ended, and says so with spore.CodeNotFound and its last words. It fails otherwise when ctx ends
// first, or the process cannot be watched.
func (l *Link) Watch(ctx context.Context) error {
	r, err := readRecord(l.dir)
	if err == nil {
		err = r.await(ctx)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return l.gone()
	}
	return err
}

func (l *Link) ask(ctx context.Context, req request) (Stats, error) {
	conn, err := dial(l.dir, nameControl)
	if err != nil {
		return Stats{}, l.gone().WithCause(err)
	}
	stats, err := ask(ctx, conn, req)
	if spore.CodeOf(err) == spore.CodeUnreachable {
		if r, recordErr := readRecord(l.dir); recordErr == nil && !r.lives() {
			return stats, l.gone().WithCause(err)
		}
	}
	return stats, err
}

func (l *Link) gone() *spore.Error {
	return spore.Errorf(spore.CodeNotFound, "the network process in %s has ended: %s", l.dir, lastWords(filepath.Join(l.dir, nameLog)))
}

// Clean ends the sidecar in dir, if one lives, waits for its end and removes its files. It touches only the process that was
// started for dir, never one that merely has the same pid.
func Clean(ctx context.Context, dir string) error {
	r, err := readRecord(dir)
	if err == nil {
		if err := r.kill(ctx); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) && spore.CodeOf(err) != spore.CodeDamaged {
		return err
	}
	return removeFiles(dir)
}

func removeFiles(dir string) error {
	for _, name := range []string{nameFrames, nameControl, nameLog, nameRecord + ".new", nameRecord} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("usernet: %w", err)
		}
	}
	return nil
}

// listen makes a socket in dir, by way of a descriptor since its path may be longer than a socket's address.
func listen(dir, name string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("usernet: %w", err)
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("usernet: socket: %w", err)
	}
	// Nobody else may speak for the VM, nor for the server.
	if err = unix.Fchmod(fd, 0o600); err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)})
	}
	if err == nil {
		err = unix.Listen(fd, 4)
	}
	if err != nil {
		return nil, errors.Join(diskError("make a socket", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func dial(dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// diskError tells a full disk from a defect.
func diskError(what string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return spore.Errorf(spore.CodeNoSpace, "no room on the disk to %s", what).WithCause(err)
	}
	return fmt.Errorf("usernet: %s: %w", what, err)
}
