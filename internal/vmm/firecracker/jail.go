package firecracker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// Names that Firecracker knows its files by, relative to its own root, which is also its working directory. Snapshots
// name them too, so they are the same for every VM, with a jail and without.
const (
	nameAPI     = "api.sock"
	nameVsock   = "v.sock"
	nameKernel  = "kernel"
	nameInitrd  = "initrd"
	nameMemory  = "memory"
	namePager   = "pager.sock"
	nameLog     = "log"     // pipe
	nameScratch = "scratch" // directory for what Firecracker writes itself, in memory where there is a jail
	nameState   = "state"   // in scratch
	nameDiff    = "diff"    // in scratch
)

// Names in the working directory, out of the VM's sight.
const (
	workRecord  = "vm.json"
	workWritten = "written" // pages known to be the VM's own; see machine.owned
	workPipe    = "console"
	workConsole = "console.log"
	workLog     = "firecracker.log"
	workErrors  = "stderr.log"
)

func driveName(id string) string { return "drive-" + id }

func workPath(vmDir string) (string, error) {
	abs, err := filepath.Abs(vmDir)
	if err != nil {
		return "", fmt.Errorf("firecracker: %w", err)
	}
	return filepath.Join(abs, "firecracker"), nil
}

// jail is where a Firecracker lives: a process, its root directory and what belongs to them.
type jail struct {
	work   string // host directory of the engine's own files and the root
	id     string // unique on this host; names the jail and its cgroup
	binary *Binary
	jailed bool
	uid    int      // -1: the server's own
	cgroup []string // directories that go with it

	proc    *process
	api     *client
	rootDir *os.File // held open: its sockets' paths may be longer than a socket address
	console *vmlog.Follower
	logs    *vmlog.Follower
}

// root is the host's path of the directory that Firecracker sees as its own.
func (j *jail) root() string {
	if !j.jailed {
		return filepath.Join(j.work, "root")
	}
	return filepath.Join(j.work, filepath.Base(j.binary.Firecracker), j.id, "root")
}

func (j *jail) file(name string) string { return filepath.Join(j.root(), name) }

// newJailID is a name that no other VM on the host has.
func newJailID() string {
	var b [12]byte
	rand.Read(b[:])
	return "fc-" + hex.EncodeToString(b[:])
}

// uidFor chooses the user id of a jail. Two may meet on one id by chance, which costs them a wall between each other but
// none to the host: seccomp, the root directory and the namespaces still hold.
func uidFor(base int, id string) int {
	h := fnv.New32a()
	h.Write([]byte(id))
	return base + int(h.Sum32()%uidRange)
}

// newWork makes the working directory. What an earlier VM left there, which has ended, is removed.
func newWork(work string) error {
	err := os.Mkdir(work, 0o700)
	if errors.Is(err, fs.ErrExist) {
		pid, findErr := findJail(work)
		if findErr != nil {
			return findErr
		}
		if pid != 0 {
			return spore.Errorf(spore.CodeConflict, "a VM (process %d) still runs in %s", pid, filepath.Dir(work))
		}
		if err = os.RemoveAll(work); err == nil {
			err = os.Mkdir(work, 0o700)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return spore.Invalidf("dir", "there is no directory %s", filepath.Dir(work)).WithCause(err)
	}
	if err != nil {
		return diskError("make the VM's directory", err)
	}
	return nil
}

// findJail finds a process of a working directory without knowing anything of it but where it is: the jailer starts in
// the directory itself, Firecracker's is the root. 0 when there is none.
func findJail(work string) (int, error) {
	roots, err := filepath.Glob(filepath.Join(globEscape(work), "*", "*", "root"))
	if err != nil {
		return 0, fmt.Errorf("firecracker: %w", err)
	}
	return findProcess(append(roots, work, filepath.Join(work, "root"))...)
}

func globEscape(path string) string {
	var out []byte
	for _, c := range []byte(path) {
		switch c {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return string(out)
}

// launch starts a Firecracker that has no VM yet, in work, and returns when it answers. On error nothing is left of it but
// the directory, with its logs.
func (e *Engine) launch(ctx context.Context, b *Binary, work string, nic *vmm.NIC, fileSize int64) (*jail, error) {
	j := &jail{work: work, id: newJailID(), binary: b, jailed: !e.opts.NoJailer, uid: -1}
	if j.jailed {
		if err := e.canJail(b); err != nil {
			return nil, err
		}
		if err := canHold(work); err != nil {
			return nil, err
		}
		j.uid = uidFor(e.opts.UIDBase, j.id)
	}
	logs, err := j.start(e, nic, fileSize)
	if err != nil {
		return nil, err
	}
	err = j.await(ctx)
	if closeErr := logs.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		killErr := j.proc.kill()
		<-j.proc.done
		return nil, errors.Join(j.explain(err), killErr, j.end())
	}
	return j, nil
}

func (e *Engine) canJail(b *Binary) error {
	switch {
	case os.Geteuid() != 0:
		return spore.Errorf(spore.CodeUnsupported, "Firecracker's jailer needs root, and this server runs as user %d", os.Geteuid()).
			WithHint("run the server as root, or start it with the option to do without the jailer")
	case b.Jailer == "":
		return spore.Errorf(spore.CodeUnsupported, "there is no jailer beside %s", b.Firecracker).
			WithHint("install the jailer of the same release in the same directory, or start the server with the option to do without it")
	}
	return nil
}

// canHold looks whether a jail works on a file system: the jailer puts the program and its devices there.
func canHold(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	for flag, name := range map[int64]string{unix.ST_NODEV: "nodev", unix.ST_NOEXEC: "noexec"} {
		if fs.Flags&flag != 0 {
			return spore.Errorf(spore.CodeUnsupported, "a jailed VM cannot live in %s: its file system is mounted with %s", dir, name).
				WithHint("mount the data directory's file system without %s", name)
		}
	}
	return nil
}

// start makes directories and pipes and starts the process. It returns the pipe of the log, to be held open for writing
// until Firecracker has opened it, or the reader would see its end too early.
func (j *jail) start(e *Engine, nic *vmm.NIC, fileSize int64) (logs *os.File, err error) {
	if err := os.MkdirAll(j.root(), 0o700); err != nil {
		return nil, diskError("make the VM's directory", err)
	}
	defer func() {
		if err != nil && logs != nil {
			err = errors.Join(err, logs.Close())
		}
		if err != nil {
			logs, err = nil, errors.Join(err, j.letGo())
		}
	}()
	if j.rootDir, err = os.Open(j.root()); err != nil {
		return logs, fmt.Errorf("firecracker: %w", err)
	}
	stdout, err := makePipe(filepath.Join(j.work, workPipe), -1)
	if err != nil {
		return logs, err
	}
	defer stdout.Close()
	if logs, err = makePipe(j.file(nameLog), j.uid); err != nil {
		return nil, err
	}
	log := e.log.With("jail", j.id)
	if j.console, err = record(filepath.Join(j.work, workPipe), filepath.Join(j.work, workConsole), log); err != nil {
		return logs, err
	}
	if j.logs, err = record(j.file(nameLog), filepath.Join(j.work, workLog), log); err != nil {
		return logs, err
	}
	stderr, err := os.OpenFile(filepath.Join(j.work, workErrors), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return logs, diskError("make the VM's log", err)
	}
	defer stderr.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return logs, fmt.Errorf("firecracker: %w", err)
	}
	defer null.Close()

	path, args, attr := j.command(e, nic, fileSize)
	attr.Files = []*os.File{null, stdout, stderr}
	child, err := startIn(j.joinNetNS(nic), path, append([]string{filepath.Base(path)}, args...), attr)
	if err != nil {
		return logs, err
	}
	if j.proc, err = watch(child.Pid, child); err != nil {
		killErr := child.Kill()
		_, waitErr := child.Wait()
		return logs, errors.Join(err, killErr, waitErr)
	}
	if err := j.proc.noCore(); err != nil {
		killErr := j.proc.kill()
		<-j.proc.done
		return logs, errors.Join(err, killErr)
	}
	j.api = newClient(func(ctx context.Context) (net.Conn, error) { return j.dial(ctx, nameAPI) })
	return logs, nil
}

// command is what to run: the jailer, which becomes Firecracker in its jail, or Firecracker itself.
func (j *jail) command(e *Engine, nic *vmm.NIC, fileSize int64) (path string, args []string, attr *os.ProcAttr) {
	attr = &os.ProcAttr{Dir: j.root(), Env: []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if os.Geteuid() == 0 && (nic == nil || nic.Tap == "") {
		attr.Sys.Cloneflags = unix.CLONE_NEWNET // one of its own, gone with it; there is nothing in it
	}
	own := []string{"--api-sock", nameAPI, "--log-path", nameLog, "--level", "Info"}
	if !j.jailed {
		return j.binary.Firecracker, append([]string{"--id", j.id}, own...), attr
	}
	attr.Dir = j.work
	uid := strconv.Itoa(j.uid)
	args = []string{
		"--id", j.id, "--exec-file", j.binary.Firecracker, "--uid", uid, "--gid", uid,
		"--chroot-base-dir", j.work, "--resource-limit", "no-file=2048", "--resource-limit", fmt.Sprintf("fsize=%d", fileSize),
	}
	if nic != nil && nic.NetNS != "" {
		args = append(args, "--netns", nic.NetNS)
	}
	hierarchy := e.cgroups()
	if hierarchy.path != "" {
		args = append(args, "--cgroup-version", strconv.Itoa(hierarchy.version), "--parent-cgroup", e.opts.CgroupParent,
			"--cgroup", fmt.Sprintf("pids.max=%d", maxThreads))
		j.cgroup = []string{filepath.Join(hierarchy.path, e.opts.CgroupParent, j.id)}
	}
	return j.binary.Jailer, append(append(args, "--"), own...), attr
}

// joinNetNS is the network namespace to start in when no jailer is there to enter it.
func (j *jail) joinNetNS(nic *vmm.NIC) string {
	if j.jailed || nic == nil {
		return ""
	}
	return nic.NetNS
}

// startTimeLimit bounds how long a Firecracker may take to answer for the first time.
const startTimeLimit = 30 * time.Second

// await waits until Firecracker answers.
func (j *jail) await(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, startTimeLimit)
	defer cancel()
	err := j.poll(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return spore.Errorf(spore.CodeUnreachable, "Firecracker does not answer %s after its start", startTimeLimit).WithCause(err)
	}
	return err
}

// poll looks for the socket until it takes connections or the process has ended.
func (j *jail) poll(ctx context.Context) error {
	for wait := 500 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		conn, err := j.dial(ctx, nameAPI)
		if err == nil {
			return conn.Close()
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-j.proc.done:
			timer.Stop()
			return errGone
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// atRoot gives the root directory's descriptor, which stays open meanwhile, to fn. It fails once the jail was let go of.
func (j *jail) atRoot(fn func(dir int) error) error {
	raw, err := j.rootDir.SyscallConn()
	if err != nil {
		return errGone // closed, since there is no other reason
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return errGone
	}
	return inner
}

// dial connects to a socket in the root. What the jail's inmate may have put there instead of the socket is not
// followed.
func (j *jail) dial(ctx context.Context, name string) (net.Conn, error) {
	fd := -1
	err := j.atRoot(func(dir int) (err error) {
		fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("firecracker: %s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("firecracker: %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("firecracker: %s is not a socket", name)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// explain says why a Firecracker did not come up, when it has said so itself.
func (j *jail) explain(err error) error {
	if !errors.Is(err, errGone) {
		return err
	}
	j.drain()
	return spore.Errorf(spore.CodeUnsupported, "Firecracker did not start: %s", j.lastWords()).WithCause(err)
}

// drain waits until what an ended process has said is written down.
func (j *jail) drain() {
	<-j.console.Done()
	<-j.logs.Done()
}

// lastWords are the ends of the logs and of the guest's console, for messages.
func (j *jail) lastWords() string {
	text := ""
	for _, source := range []struct {
		name, label string
		lines       int
	}{{workErrors, "", 5}, {workLog, "", 5}, {workConsole, "console: ", 8}} {
		tail, err := vmlog.Tail(filepath.Join(j.work, source.name), 4096)
		if err != nil || len(tail) == 0 {
			continue
		}
		if text != "" {
			text += "; "
		}
		text += source.label + lastLines(tail, source.lines)
	}
	if text == "" {
		return "it left no message"
	}
	return text
}

// end ends the process and removes what only it needed but the working directory.
func (j *jail) end() error {
	if err := j.proc.kill(); err != nil {
		return err
	}
	<-j.proc.done
	j.drain()
	return errors.Join(removeCgroups(j.cgroup), j.letGo())
}

// letGo closes what this process holds of the jail.
func (j *jail) letGo() error {
	if j.api != nil {
		j.api.close()
	}
	for _, r := range []*vmlog.Follower{j.console, j.logs} {
		if r != nil {
			r.Stop()
		}
	}
	if j.rootDir != nil {
		if err := j.rootDir.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("firecracker: %w", err)
		}
	}
	return nil
}
