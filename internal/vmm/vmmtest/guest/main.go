// Command guest is the init of the VMs that package vmmtest boots: it does to memory, disk and console what the suite
// asks for on the control port, one line for one line, and echoes what comes on the data port.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	fmt.Println("vmmtest guest:", run()) // it only comes back when something is wrong
	powerOff()
}

// powerOff ends the machine as its hypervisor knows it: for some a reset is the end, and a power-off leaves it standing.
func powerOff() error {
	text, err := os.ReadFile("/proc/cmdline")
	if err == nil && slices.Contains(strings.Fields(string(text)), "spore.halt=reboot") {
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko") // numbered in load order
	if err != nil {
		return err
	}
	for _, path := range modules {
		if err := load(path); err != nil {
			return err
		}
	}
	control, err := port("spore.control")
	if err != nil {
		return err
	}
	data, err := port("spore.data")
	if err != nil {
		return err
	}
	go echo(data)
	go count()
	if err := answerFrames(); err != nil {
		return err
	}
	fmt.Println("vmmtest guest ready")
	return serve(control)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// port waits for a virtio port, or for vsock, to appear.
func port(name string) (io.ReadWriter, error) {
	for range 5000 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if text, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(text)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		if hasVsock() {
			return listenVsock(vsockPorts[name])
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("there is no port %s", name)
}

// patient reads a port through the times when nobody is connected to its other end.
type patient struct{ f io.Reader }

func (p patient) Read(b []byte) (int, error) {
	for {
		n, err := p.f.Read(b)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func echo(f io.ReadWriter) {
	buf := make([]byte, 4096)
	for {
		n, err := patient{f}.Read(buf)
		if err != nil {
			fmt.Println("vmmtest guest: data port:", err)
			return
		}
		f.Write(buf[:n])
	}
}

var ticks atomic.Int64

func count() {
	for range time.Tick(time.Millisecond) {
		ticks.Add(1)
	}
}

func serve(control io.ReadWriter) error {
	in := bufio.NewReader(patient{control})
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue // ends what a conversation that was cut short left behind
		}
		answer, err := obey(words)
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := fmt.Fprintln(control, answer); err != nil {
			return err
		}
	}
}

var region []byte

func obey(words []string) (string, error) {
	verb, n, seed := words[0], 0, uint64(0)
	if strings.HasPrefix(verb, "hello-") {
		return verb, nil
	}
	if len(words) == 3 {
		if _, err := fmt.Sscan(words[1]+" "+words[2], &n, &seed); err != nil {
			return "", err
		}
	}
	switch verb {
	case "count":
		return fmt.Sprint(ticks.Load()), nil
	case "fill": // fill KIB SEED
		region = noise(n<<10, seed)
		return "ok", nil
	case "sum":
		return fmt.Sprintf("%08x", crc32.ChecksumIEEE(region)), nil
	case "print": // print KIB SEED: so much text on the console
		fmt.Print(strings.Repeat(strings.Repeat("console ", 8)+"\n", n<<10/65+1), "printed ", seed, "\n")
		return "ok", nil
	case "disk-write": // disk-write KIB SEED
		return "ok", onDisk(os.O_WRONLY, func(f *os.File) error {
			if _, err := f.Write(noise(n<<10, seed)); err != nil {
				return err
			}
			return f.Sync()
		})
	case "disk-sum": // disk-sum KIB 0
		sum := crc32.NewIEEE()
		err := onDisk(os.O_RDONLY, func(f *os.File) error {
			// What other VMs on the same file did must be seen, not what this kernel remembers.
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
			_, err := io.CopyN(sum, f, int64(n)<<10)
			return err
		})
		return fmt.Sprintf("%08x", sum.Sum32()), err
	case "frame": // frame 0 SEED: one from here, with SEED in it
		return "ok", sendFrame(seed)
	case "nic":
		return nicAddress()
	case "disk-rate": // disk-rate MILLISECONDS KIB: operations of so much each, for so long
		return diskRate(time.Duration(n)*time.Millisecond, int(seed)<<10)
	case "disk-flood": // disk-flood KIB COUNT: so many writes of so much each, at once, in the background
		return "ok", diskFlood(n<<10, int(seed))
	case "disk-flooded": // waits for the end of a flood
		return "ok", <-flooded
	case "poweroff":
		return "", powerOff()
	case "crash":
		return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
	return "", fmt.Errorf("unknown command %q", words)
}

// bulk is a piece of memory that can be written past the page cache.
func bulk(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// diskRate reads and writes for a while, in four places at once, and tells bytes, operations and microseconds. Neighbouring
// operations lie apart, so that nothing on their way joins them to one.
func diskRate(span time.Duration, size int) (string, error) {
	var bytes, ops atomic.Int64
	err := onDisk(os.O_RDWR|unix.O_DIRECT, func(f *os.File) error {
		end, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		quarter := end / 4
		began := time.Now()
		errs := make(chan error, 4)
		for i := range int64(4) {
			go func() {
				buf, err := bulk(size)
				for n := int64(0); err == nil && time.Since(began) < span; n++ {
					off := i*quarter + n*2*int64(size)%(quarter-int64(size))
					off -= off % int64(size)
					if n%2 == 0 {
						_, err = f.WriteAt(buf, off)
					} else {
						_, err = f.ReadAt(buf, off)
					}
					bytes.Add(int64(size))
					ops.Add(1)
				}
				errs <- err
			}()
		}
		for range 4 {
			err = errors.Join(err, <-errs)
		}
		span = time.Since(began)
		return err
	})
	return fmt.Sprint(bytes.Load(), ops.Load(), span.Microseconds()), err
}

var flooded = make(chan error, 1)

// diskFlood returns once the writes are on their way.
func diskFlood(size, count int) error {
	buf, err := bulk(size)
	if err != nil {
		return err
	}
	begun := make(chan struct{}, count)
	go func() {
		flooded <- onDisk(os.O_WRONLY|unix.O_DIRECT, func(f *os.File) error {
			errs := make(chan error, count)
			for i := range count {
				go func() {
					begun <- struct{}{}
					_, err := f.WriteAt(buf, int64(i*size))
					errs <- err
				}()
			}
			var all error
			for range count {
				all = errors.Join(all, <-errs)
			}
			return all
		})
	}()
	for range count {
		select {
		case <-begun:
		case err := <-flooded:
			return err
		}
	}
	time.Sleep(200 * time.Millisecond) // from the call to the device there is nothing to wait for
	return nil
}

func onDisk(flag int, fn func(*os.File) error) error {
	path, err := diskPath()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}
	return errors.Join(fn(f), f.Close())
}

// diskPath finds the drive named disk. A machine with vsock does not show its drives' names; there it is the second.
func diskPath() (string, error) {
	if hasVsock() {
		return "/dev/vdb", nil
	}
	serials, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return "", err
	}
	for _, s := range serials {
		if text, err := os.ReadFile(s); err == nil && strings.TrimSpace(string(text)) == "disk" {
			return "/dev/" + filepath.Base(filepath.Dir(s)), nil
		}
	}
	return "", errors.New("there is no drive with the serial disk")
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}
