package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Guest is the System of a real sandbox. The files that carry its identity must exist; spore-init puts them on a file
// system in memory, so that writing them costs no disk and no image carries another sandbox's identity.
type Guest struct {
	MachineIDFile, HostnameFile, HostsFile, ResolvFile string

	bootID, kernel string // do not change while the guest lives
}

// NewGuest makes a Guest and reads what does not change.
func NewGuest() (*Guest, error) {
	g := &Guest{MachineIDFile: "/etc/machine-id", HostnameFile: "/etc/hostname", HostsFile: "/etc/hosts", ResolvFile: "/etc/resolv.conf"}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	g.bootID = strings.TrimSpace(string(id))
	g.kernel = unix.ByteSliceToString(u.Release[:])
	return g, nil
}

func (g *Guest) AddEntropy(random []byte) error {
	if len(random) > 4096 {
		return errors.New("at most 4096 bytes")
	}
	fd, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var req struct {
		bits, size int32
		buf        [4096]byte
	}
	req.bits, req.size = int32(8*len(random)), int32(len(random))
	copy(req.buf[:], random)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	// The generator would take the new entropy up only at its next turn.
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), rndReseedCRNG, 0); e != 0 {
		return e
	}
	return nil
}

const rndReseedCRNG = 0x5207 // RNDRESEEDCRNG of linux/random.h

func (g *Guest) SetClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

func (g *Guest) SetHostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if err := overwrite(g.HostnameFile, name+"\n"); err != nil {
		return err
	}
	hosts, err := os.ReadFile(g.HostsFile)
	if err != nil {
		return err
	}
	return overwrite(g.HostsFile, setHost(string(hosts), name))
}

// hostMark ends the one line of /etc/hosts that belongs to the agent.
const hostMark = " # this sandbox"

// setHost puts the line of this sandbox into the text of a hosts file, in place of the one that an earlier identity
// has left.
func setHost(hosts, name string) string {
	var b strings.Builder
	for line := range strings.Lines(hosts) {
		if !strings.HasSuffix(strings.TrimRight(line, "\r\n"), hostMark) {
			b.WriteString(line)
		}
	}
	if s := b.String(); s != "" && !strings.HasSuffix(s, "\n") {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "127.0.1.1 %s%s\n", name, hostMark)
	return b.String()
}

func (g *Guest) SetMachineID(id string) error { return overwrite(g.MachineIDFile, id+"\n") }

func (g *Guest) SetNameservers(servers []string) error {
	var b strings.Builder
	for _, s := range servers {
		if strings.ContainsAny(s, " \t\r\n\x00") {
			return fmt.Errorf("%q is not an address", s)
		}
		b.WriteString("nameserver " + s + "\n")
	}
	return overwrite(g.ResolvFile, b.String())
}

// overwrite writes a file in place: these are mount points, which cannot be renamed over.
func overwrite(path, text string) error {
	return os.WriteFile(path, []byte(text), 0o644)
}

func (g *Guest) Sync() { unix.Sync() }

func (g *Guest) Facts(f *Facts) error {
	f.BootID, f.Kernel = g.bootID, g.kernel
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	f.Hostname = unix.ByteSliceToString(u.Nodename[:])
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return err
	}
	f.UptimeMS = up.Nano() / int64(time.Millisecond)
	f.UnixNano = time.Now().UnixNano()
	return nil
}
