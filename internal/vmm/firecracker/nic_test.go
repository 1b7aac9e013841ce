package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/thread"
	"github.com/sporevm/spore/internal/vmm"
)

// newNetNS makes a network namespace with a TAP device and returns its path. It ends with the test.
func newNetNS(t *testing.T, tap string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, thread.Apart(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := makeTap(tap, -1); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}))
	t.Cleanup(func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// attached says whether a program is on the TAP device.
func attached(t *testing.T, netns, tap string) (yes bool) {
	t.Helper()
	ns, err := os.Open(netns)
	must(t, err)
	defer ns.Close()
	must(t, thread.Apart(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(tap)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		if yes = errors.Is(err, unix.EBUSY); yes {
			return nil
		}
		return err
	}))
	return yes
}

// TestCables freezes a VM whose cable leads nowhere and thaws it with one in a namespace, under another name, and back.
func TestCables(t *testing.T) {
	needRoot(t)
	engines(t, func(t *testing.T, open func(func(*Options)) *Engine) {
		for _, noJailer := range []bool{false, true} {
			e := open(func(o *Options) { o.NoJailer = noJailer })
			cfg := tinyConfig(t)
			cfg.NIC = &vmm.NIC{MAC: "02:00:00:00:00:01"}
			vm, err := e.Boot(t.Context(), cfg)
			must(t, err)
			killAtEnd(t, vm)
			must(t, vm.Pause(t.Context()))
			state := save(t, vm)
			must(t, vm.Kill(t.Context()))

			const tap = "uplink"
			child := cfg
			child.Dir = filepath.Join(t.TempDir(), "vm")
			must(t, os.Mkdir(child.Dir, 0o700))
			child.NIC = &vmm.NIC{MAC: cfg.NIC.MAC, Tap: tap, NetNS: newNetNS(t, tap)}
			info, err := e.Installed(t.Context())
			must(t, err)
			if !info[0].Features.NetworkOverrides {
				f, err := os.Open(state)
				must(t, err)
				defer f.Close()
				_, err = e.Thaw(t.Context(), child, vmm.Image{State: f})
				if spore.CodeOf(err) != spore.CodeUnsupported || !strings.Contains(err.Error(), unpluggedTap) {
					t.Errorf("a TAP device under another name: %v", err)
				}
				continue
			}
			thawed := thaw(t, e, child, state, nil)
			if !attached(t, child.NIC.NetNS, tap) {
				t.Error("nobody is on the TAP device")
			}
			again := save(t, thawed)
			must(t, thawed.Kill(t.Context()))
			if attached(t, child.NIC.NetNS, tap) {
				t.Error("someone is left on the TAP device")
			}
			back := cfg
			back.Dir = filepath.Join(t.TempDir(), "vm")
			must(t, os.Mkdir(back.Dir, 0o700))
			must(t, thaw(t, e, back, again, nil).Resume(t.Context()))
		}
	})
}

// TestForeignDrive gives a VM a file of someone else's, and a second VM the same.
func TestForeignDrive(t *testing.T) {
	needRoot(t)
	engines(t, func(t *testing.T, open func(func(*Options)) *Engine) {
		e := open(nil)
		cfg := tinyConfig(t)
		path := filepath.Join(t.TempDir(), "disk")
		must(t, os.WriteFile(path, make([]byte, 1<<20), 0o640))
		must(t, os.Chown(path, 1234, 4321))
		cfg.Drives = append(cfg.Drives, vmm.Drive{ID: "data", Path: path, Foreign: true})
		vm, err := e.Boot(t.Context(), cfg)
		must(t, err)
		killAtEnd(t, vm)
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o777 != 0o640 {
			t.Errorf("the file belongs to %d:%d now, with mode %o", st.Uid, st.Gid, st.Mode&0o777)
		}
		second := tinyConfig(t)
		second.Drives = append(second.Drives, cfg.Drives[2])
		if _, err := e.Boot(t.Context(), second); spore.CodeOf(err) != spore.CodeInUse {
			t.Errorf("a second VM on the same file: %v", err)
		}
		must(t, vm.Kill(context.Background()))
		other, err := e.Boot(t.Context(), second)
		must(t, err)
		must(t, other.Kill(t.Context()))
	})
}
