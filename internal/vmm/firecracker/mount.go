package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
)

// exposure is a file of the host that Firecracker gets to see under a name in its root.
type exposure struct {
	name     string
	path     string
	readOnly bool
	foreign  bool // nothing about the file itself may be changed
}

// expose shows files to Firecracker. In a jail they are mounted, in the mount namespace that the jailer made for it
// alone: nothing is copied, nobody else sees the mounts, and they go when the process does, however it ends. Without a
// jail they are linked.
func (j *jail) expose(files []exposure) error {
	if !j.jailed {
		for _, f := range files {
			target, err := filepath.Abs(f.path)
			if err == nil {
				err = os.Symlink(target, j.file(f.name))
			}
			if err != nil {
				return diskError("link the VM's files", err)
			}
		}
		return nil
	}
	ids := identities{}
	defer ids.close()
	var mounts []attachment
	defer func() {
		for _, m := range mounts {
			unix.Close(m.fd)
		}
	}()
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Stat(f.path, &st); err != nil {
			return fmt.Errorf("firecracker: %s: %w", f.path, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			if err := j.makeNode(f, st.Rdev); err != nil {
				return err
			}
			continue
		}
		if err := j.makeTarget(f.name); err != nil {
			return err
		}
		fd, err := j.detach(f, st, ids)
		if err != nil {
			return err
		}
		mounts = append(mounts, attachment{fd, f.name})
	}
	return j.attach(mounts)
}

// makeNode gives a jail a device node of its own.
func (j *jail) makeNode(f exposure, rdev uint64) error {
	mode := uint32(unix.S_IFBLK | 0o660)
	if f.readOnly {
		mode = unix.S_IFBLK | 0o440
	}
	err := j.atRoot(func(dir int) error {
		if err := unix.Mknodat(dir, f.name, mode, int(rdev)); err != nil {
			return err
		}
		// By its group, not by its owner: an owner could give itself more.
		if err := unix.Fchownat(dir, f.name, 0, j.uid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return unix.Fchmodat(dir, f.name, mode&0o777, 0) // whatever the server's umask is
	})
	if err != nil {
		return fmt.Errorf("firecracker: make a node for %s: %w", f.path, err)
	}
	return nil
}

// makeTarget makes an empty file to mount on.
func (j *jail) makeTarget(name string) error {
	err := j.atRoot(func(dir int) error {
		fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o400)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		return diskError("make a file to mount on", err)
	}
	return nil
}

// attachment is a mount that hangs nowhere yet, and where it is to go.
type attachment struct {
	fd   int
	name string
}

// detach makes a mount of a file on which the jail's user is the file's owner, whoever that really is: the file keeps
// its owner and mode. Where the file system cannot do that, the file itself is opened to the jail's user.
func (j *jail) detach(f exposure, st unix.Stat_t, ids identities) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, f.path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("firecracker: mount %s: %w", f.path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if f.readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	var identity *os.File
	if !j.mayUse(f, st) {
		if identity, err = ids.get(st.Uid, st.Gid, j.uid); err == nil {
			attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
			attr.Userns_fd = uint64(identity.Fd())
			if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err == nil {
				return fd, nil
			}
		}
		if err := j.allow(f, err); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		attr.Attr_set &^= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = 0
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return -1, errors.Join(fmt.Errorf("firecracker: mount %s: %w", f.path, err), unix.Close(fd))
	}
	return fd, nil
}

// mayUse says whether the jail's user may open the file as it is.
func (j *jail) mayUse(f exposure, st unix.Stat_t) bool {
	want := uint32(0o4)
	if !f.readOnly {
		want = 0o6
	}
	shift := 0
	if int(st.Uid) == j.uid {
		shift = 6
	}
	return st.Mode>>shift&want == want
}

// allow opens a file to the jail's user, for file systems that cannot show it under another owner.
func (j *jail) allow(f exposure, why error) error {
	switch {
	case f.foreign:
		return spore.Errorf(spore.CodeUnsupported, "%s cannot be shown to a jailed VM without changing its owner", f.path).WithCause(why).
			WithHint("put it on a file system with idmapped mounts (ext4, XFS or btrfs on Linux 5.12 or newer)")
	case f.readOnly:
		fi, err := os.Stat(f.path)
		if err == nil {
			err = os.Chmod(f.path, fi.Mode().Perm()|0o004)
		}
		if err != nil {
			return fmt.Errorf("firecracker: let the jail read %s: %w", f.path, err)
		}
	default:
		if err := os.Chown(f.path, j.uid, j.uid); err != nil {
			return fmt.Errorf("firecracker: let the jail use %s: %w", f.path, err)
		}
	}
	return nil
}

// attach hangs mounts into the root of the jail.
func (j *jail) attach(mounts []attachment) error {
	if len(mounts) == 0 {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", j.proc.pid))
	if err != nil {
		return fmt.Errorf("firecracker: the jail's mounts: %w", err)
	}
	defer ns.Close()
	if j.proc.ended() { // only now is it sure that the namespace was not another process's
		return errGone
	}
	return thread.Apart(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("firecracker: enter the jail: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("firecracker: enter the jail: %w", err)
		}
		for _, m := range mounts {
			// Entering the namespace has made its root this thread's.
			if err := unix.MoveMount(m.fd, "", unix.AT_FDCWD, "/"+m.name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("firecracker: mount %s in the jail: %w", m.name, err)
			}
		}
		return nil
	})
}

// makeScratch gives Firecracker a directory to write to: in memory where it has a jail, since it insists on bringing
// what it writes to the medium, and a paused guest would wait for that.
func (j *jail) makeScratch() error {
	if err := j.atRoot(func(dir int) error { return unix.Mkdirat(dir, nameScratch, 0o700) }); err != nil {
		return diskError("make the VM's directory", err)
	}
	if !j.jailed {
		return nil
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("firecracker: make the jail's scratch directory: %w", err)
	}
	defer unix.Close(fs)
	owner := fmt.Sprint(j.uid)
	for _, set := range [][2]string{{"mode", "0700"}, {"uid", owner}, {"gid", owner}, {"nr_inodes", "16"}} {
		if err := unix.FsconfigSetString(fs, set[0], set[1]); err != nil {
			return fmt.Errorf("firecracker: make the jail's scratch directory: %s: %w", set[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("firecracker: make the jail's scratch directory: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fmt.Errorf("firecracker: make the jail's scratch directory: %w", err)
	}
	return errors.Join(j.attach([]attachment{{fd, nameScratch}}), unix.Close(fd))
}

// openRoot opens the directory that Firecracker sees as its root, with what is mounted there.
func (j *jail) openRoot() (int, error) {
	var root int
	var err error
	if j.jailed {
		root, err = unix.Open(fmt.Sprintf("/proc/%d/root", j.proc.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	} else {
		err = j.atRoot(func(dir int) (err error) {
			root, err = unix.Openat(dir, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			return err
		})
	}
	if j.proc.ended() { // else it is not another process's
		if err == nil {
			unix.Close(root)
		}
		return -1, errGone
	}
	if err != nil {
		return -1, fmt.Errorf("firecracker: the jail's root: %w", err)
	}
	return root, nil
}

// openScratch opens a file that Firecracker has written, and nothing else that may lie under its name.
func (j *jail) openScratch(name string) (*os.File, error) {
	root, err := j.openRoot()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, filepath.Join(nameScratch, name), &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return nil, fmt.Errorf("firecracker: %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("firecracker: what the VM has left as %s is no file", name), err, f.Close())
	}
	return f, nil
}

// identities are user namespaces that show files of one owner as files of another, each made once.
type identities map[[3]int]*os.File

func (ids identities) close() {
	for _, f := range ids {
		f.Close()
	}
}

// get makes the namespace in which uid and gid of the file system are to. It belongs to a child that is stopped before it
// does anything and is gone again when get returns.
func (ids identities) get(uid, gid uint32, to int) (*os.File, error) {
	key := [3]int{int(uid), int(gid), to}
	if f := ids[key]; f != nil {
		return f, nil
	}
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	child, err := os.StartProcess("/proc/self/exe", []string{"spore-identity"}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{
			Ptrace:      true,
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: int(uid), HostID: to, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: int(gid), HostID: to, Size: 1}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("firecracker: make a user namespace: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid))
	killErr := child.Kill()
	_, waitErr := child.Wait()
	if err = errors.Join(err, killErr, waitErr); err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("firecracker: make a user namespace: %w", err)
	}
	ids[key] = f
	return f, nil
}
