package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/flags"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// jail is what a command line asks for.
type jail struct {
	id        string
	exec      string // path outside
	root      string // the chroot
	uid, gid  int
	netns     string
	daemonize bool
	newPID    bool
	groups    *cgroups
	files     uint64 // limit of open files
	fileSize  *uint64
	extra     []string
}

// filesByDefault is the limit of open files when none is asked for.
const filesByDefault = 2048

func refuse(kind, text string, args ...any) error {
	return &refusal{text: fmt.Sprintf(text, args...), debug: kind}
}

func newJail(set *flags.Set) (*jail, error) {
	j := &jail{id: set.Value("id"), netns: set.Value("netns"), daemonize: set.Has("daemonize"), newPID: set.Has("new-pid-ns"), files: filesByDefault, extra: set.Extra}
	if why := flags.InvalidID(j.id); why != "" {
		var c rune
		var at int
		text := fmt.Sprintf("Invalid len (%d);  the length must be between 1 and 64", len(j.id))
		if n, _ := fmt.Sscanf(why, "InvalidChar('%c', %d)", &c, &at); n == 2 {
			text = fmt.Sprintf("Invalid char (%c) at position %d", c, at)
		}
		return nil, refuse("InvalidInstanceId("+why+")", "Invalid instance ID: %s", text)
	}
	var err error
	if j.exec, err = canonical(set.Value("exec-file")); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(j.exec); err != nil || !fi.Mode().IsRegular() {
		return nil, refuse(fmt.Sprintf("NotAFile(%q)", j.exec), "%s is not a file", j.exec)
	}
	if name := filepath.Base(j.exec); !since(13) && !strings.Contains(name, "firecracker") {
		return nil, refuse("ExecFileName", "Invalid filename. The filename of `--exec-file` option must contain \"firecracker\": %s", name)
	}
	base, err := canonical(set.Value("chroot-base-dir"))
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(base); err != nil || !fi.IsDir() {
		return nil, refuse(fmt.Sprintf("NotADirectory(%q)", base), "%s is not a directory", base)
	}
	name := filepath.Base(j.exec)
	j.root = filepath.Join(base, name, j.id, "root")
	if j.uid, err = number("uid", set.Value("uid")); err != nil {
		return nil, err
	}
	if j.gid, err = number("gid", set.Value("gid")); err != nil {
		return nil, err
	}
	parent := name
	if set.Has("parent-cgroup") {
		parent = set.Value("parent-cgroup")
	}
	if j.groups, err = newCgroups(set.Value("cgroup-version"), set.Values("cgroup"), parent, j.id); err != nil {
		return nil, err
	}
	for _, l := range set.Values("resource-limit") {
		if err := j.limit(l); err != nil {
			return nil, err
		}
	}
	return j, nil
}

func canonical(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", refuse(fmt.Sprintf("Canonicalize(%q, %s)", path, rust.Debug(err)), "Failed to canonicalize path %s: %s", path, rust.Message(err))
	}
	return real, nil
}

func number(what, text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		kind := strings.ToUpper(what[:1]) + what[1:]
		return 0, refuse(fmt.Sprintf("%s(%q)", kind, text), "Invalid %s: %s", what, text)
	}
	return int(n), nil
}

func (j *jail) limit(arg string) error {
	name, value, ok := strings.Cut(arg, "=")
	if !ok {
		return refuse(fmt.Sprintf("ResLimitFormat(%q)", arg), "Invalid format for resources limits: %s", arg)
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return refuse(fmt.Sprintf("ResLimitValue(%q, \"invalid digit found in string\")", value), "Invalid limit value for resource: %s: invalid digit found in string", value)
	}
	switch name {
	case "fsize":
		j.fileSize = &n
	case "no-file":
		j.files = n
	default:
		return refuse(fmt.Sprintf("ResLimitArgument(%q)", name), "Invalid resource argument: %s", name)
	}
	return nil
}

// failed words an error of the operating system.
func failed(kind string, err error, text string, args ...any) error {
	return refuse(kind+"("+rust.Debug(err)+")", text+": %s", append(args, rust.Message(err))...)
}

// enter makes the jail, and becomes the program in it.
func (j *jail) enter() error {
	start := time.Now()
	if err := os.MkdirAll(j.root, 0o755); err != nil {
		return failed("CreateDir", err, "Failed to create directory %s", j.root)
	}
	name := filepath.Base(j.exec)
	if err := j.copyExec(filepath.Join(j.root, name)); err != nil {
		return err
	}
	if j.netns != "" {
		if err := joinNetwork(j.netns); err != nil {
			return err
		}
	}
	if err := j.setLimits(); err != nil {
		return err
	}
	if err := j.groups.setup(); err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return failed("Open", err, "Failed to open /dev/null")
	}
	minor, haveUffd := uffdMinor()
	if err := chroot(j.root); err != nil {
		return err
	}
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		if err := j.folder(dir); err != nil {
			return err
		}
	}
	devices := []device{{"/dev/net/tun", 10, 200}, {"/dev/kvm", 10, 232}, {"/dev/urandom", 1, 9}}
	if haveUffd {
		devices = append(devices, device{"/dev/userfaultfd", 10, minor})
	}
	for _, d := range devices {
		if err := j.mknod(d); err != nil {
			return err
		}
	}
	return j.become("/"+name, start, null)
}

func (j *jail) copyExec(to string) error {
	text, err := os.ReadFile(j.exec)
	if err != nil {
		return failed("Open", err, "Failed to open %s", j.exec)
	}
	fi, err := os.Stat(j.exec)
	if err != nil {
		return failed("Metadata", err, "Cannot get metadata for a file: %s", j.exec)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, fi.Mode().Perm())
	if err != nil {
		return failed("Open", err, "Failed to open %s", to)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return failed("Metadata", err, "Cannot get metadata for a file: %s", to)
	}
	if st.Nlink > 1 && since(14) {
		return refuse(fmt.Sprintf("HardLink(%q)", to), "Detected hard link at: %s", to)
	}
	if since(14) {
		if err := f.Chown(j.uid, j.gid); err != nil {
			return failed("ChangeFileOwner", err, "Failed to change owner for %s", to)
		}
	}
	if _, err := f.Write(text); err != nil {
		return failed("Copy", err, "Failed to copy %s to %s", j.exec, to)
	}
	return nil
}

func joinNetwork(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return refuse(fmt.Sprintf("FileOpen(%q, %s)", path, rust.Debug(err)), "Failed to open file %s: %s", path, rust.Message(err))
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return failed("SetNetNs", err, "Failed to join network namespace: netns")
	}
	return nil
}

func (j *jail) setLimits() error {
	set := func(what int, n uint64, name string) error {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return refuse(fmt.Sprintf("Setrlimit(%q)", name), "Failed to set limit for resource: %s", name)
		}
		return nil
	}
	if j.fileSize != nil {
		if err := set(unix.RLIMIT_FSIZE, *j.fileSize, "size of file"); err != nil {
			return err
		}
	}
	return set(unix.RLIMIT_NOFILE, min(j.files, math.MaxInt64), "number of file descriptors")
}

// uffdMinor is the number of the host's /dev/userfaultfd.
func uffdMinor() (uint32, bool) {
	text, err := os.ReadFile("/proc/misc")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) == 2 && words[1] == "userfaultfd" {
			n, err := strconv.ParseUint(words[0], 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

func (j *jail) folder(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return failed("CreateDir", err, "Failed to create directory %s", path)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return failed("Chmod", err, "Failed to change permissions on %s", path)
	}
	if err := os.Chown(path, j.uid, j.gid); err != nil {
		return failed("ChangeFileOwner", err, "Failed to change owner for %s", path)
	}
	return nil
}

type device struct {
	path         string
	major, minor uint32
}

func (j *jail) mknod(d device) error {
	err := unix.Mknod(d.path, unix.S_IFCHR|0o600, int(unix.Mkdev(d.major, d.minor)))
	if err != nil && d.path == "/dev/urandom" {
		fmt.Printf("Warning! Could not create /dev/urandom device inside jailer: %s.\nMMDS version 2 will not be available to use.\n", rust.Message(err))
		return nil
	}
	if err != nil {
		return refuse(fmt.Sprintf("MknodDev(%s, %q)", rust.Debug(err), d.path), "Failed to create %s via mknod inside the jail: %s", d.path, rust.Message(err))
	}
	if err := os.Chown(d.path, j.uid, j.gid); err != nil {
		return failed("ChangeFileOwner", err, "Failed to change owner for %s", d.path)
	}
	return nil
}
