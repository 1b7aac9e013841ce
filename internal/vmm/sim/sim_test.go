package sim_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/sim"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	// The suite hands a text file to an engine to see it refused; this one does not look into kernels.
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	vmmtest.Run(t, vmmtest.Harness{
		New:    func(testing.TB) vmm.Engine { return sim.New(sim.Options{Guest: guest}) },
		Kernel: kernel, Initrd: kernel, MemoryMiB: 32, NoKernel: true,
		Cables: map[string]bool{vmmtest.CableSocket: true},
	})
}

// guest answers the commands of the suite. Its state is in its memory: the length of its region at offset 0, the
// region from the second page on.
func guest(g *sim.Guest, port string, conn sim.Conn) {
	if port == vmm.PortData {
		io.Copy(conn, conn)
		return
	}
	if port == sim.PortFrames {
		echoFrames(g, conn)
		return
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		answer, err := obey(g, words)
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := io.WriteString(conn, answer+"\n"); err != nil {
			return
		}
	}
}

func obey(g *sim.Guest, words []string) (string, error) {
	n, seed := 0, uint64(0)
	if len(words) == 3 {
		if _, err := fmt.Sscan(words[1]+" "+words[2], &n, &seed); err != nil {
			return "", err
		}
	}
	disk := g.Config().Drives[1].Path
	switch verb := words[0]; verb {
	case "count":
		return fmt.Sprint(time.Now().UnixNano()), nil
	case "fill":
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(n)<<10)
		if _, err := g.WriteAt(size[:], 0); err != nil {
			return "", err
		}
		_, err := g.WriteAt(noise(n<<10, seed), vmm.PageSize)
		return "ok", err
	case "sum":
		var size [8]byte
		if _, err := g.ReadAt(size[:], 0); err != nil {
			return "", err
		}
		region := make([]byte, binary.LittleEndian.Uint64(size[:]))
		_, err := g.ReadAt(region, vmm.PageSize)
		return fmt.Sprintf("%08x", crc32.ChecksumIEEE(region)), err
	case "print":
		g.Print(strings.Repeat("console ", n<<7) + fmt.Sprint("printed ", seed))
		return "ok", nil
	case "disk-write":
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			return "", err
		}
		_, err = f.Write(noise(n<<10, seed))
		return "ok", errors.Join(err, f.Close())
	case "disk-sum":
		b, err := os.ReadFile(disk)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%08x", crc32.ChecksumIEEE(b[:n<<10])), nil
	case "nic":
		if g.Config().NIC == nil {
			return "none", nil
		}
		return "eth0=" + g.Config().NIC.MAC, nil
	case "frame":
		frame := make([]byte, 60)
		copy(frame[6:], mac(g))
		copy(frame[12:], []byte{0x88, 0xb5})
		binary.BigEndian.PutUint64(frame[14:], seed)
		return "ok", g.SendFrame(frame)
	case "disk-rate":
		return diskRate(g, time.Duration(n)*time.Millisecond, int(seed)<<10)
	case "disk-flood":
		return "ok", diskFlood(g, n<<10, int(seed))
	case "disk-flooded":
		return "ok", <-flooded
	case "poweroff":
		g.PowerOff()
		return "", nil
	case "crash":
		g.Crash("it was told to")
		return "", nil
	default:
		if strings.HasPrefix(verb, "hello-") {
			return verb, nil
		}
		return "", fmt.Errorf("unknown command %q", verb)
	}
}

func mac(g *sim.Guest) net.HardwareAddr {
	addr, err := net.ParseMAC(g.Config().NIC.MAC)
	if err != nil {
		panic(err)
	}
	return addr
}

// echoFrames sends each frame back to its sender.
func echoFrames(g *sim.Guest, conn sim.Conn) {
	for {
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			return
		}
		copy(frame, frame[6:12])
		copy(frame[6:], mac(g))
		if g.SendFrame(frame) != nil {
			return
		}
	}
}

func diskRate(g *sim.Guest, span time.Duration, size int) (string, error) {
	d, err := g.Drive("disk")
	if err != nil {
		return "", err
	}
	buf, ops, began := make([]byte, size), 0, time.Now()
	for ; err == nil && time.Since(began) < span; ops++ {
		if ops%2 == 0 {
			_, err = d.WriteAt(buf, 0)
		} else {
			_, err = d.ReadAt(buf, 0)
		}
	}
	return fmt.Sprint(ops*size, ops, time.Since(began).Microseconds()), err
}

var flooded = make(chan error, 1)

func diskFlood(g *sim.Guest, size, count int) error {
	d, err := g.Drive("disk")
	if err != nil {
		return err
	}
	errs := make(chan error, count)
	for i := range count {
		go func() {
			_, err := d.WriteAt(make([]byte, size), int64(i*size))
			errs <- err
		}()
	}
	go func() {
		var all error
		for range count {
			all = errors.Join(all, <-errs)
		}
		flooded <- all
	}()
	return nil
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func config(t *testing.T) vmm.Config {
	dir := t.TempDir()
	return vmm.Config{ID: "vm", Dir: dir, VCPUs: 1, MemoryMiB: 1, Memory: filepath.Join(dir, "memory")}
}

func TestFaults(t *testing.T) {
	failing := func(at sim.Step, err error) sim.Fault {
		return func(_ context.Context, _ string, step sim.Step) error {
			if step == at {
				return err
			}
			return nil
		}
	}
	boom := spore.Errorf(spore.CodeNoSpace, "no room")
	cfg := config(t)
	if _, err := sim.New(sim.Options{Fault: failing(sim.StepBoot, boom)}).Boot(t.Context(), cfg); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	vm, err := sim.New(sim.Options{Fault: failing(sim.StepPause, sim.ErrDie)}).Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Pause(t.Context()); !errors.Is(err, sim.ErrDie) {
		t.Fatal(err)
	}
	<-vm.Done()
	if vm.Err() == nil || vm.State() != vmm.StateExited {
		t.Fatal(vm.Err(), vm.State())
	}
}

func TestSeededFaultsRepeat(t *testing.T) {
	run := func() (out []string) {
		f := sim.Seeded(7, 0.3, 0.2, 0)
		for range 50 {
			out = append(out, fmt.Sprint(f(t.Context(), "vm", sim.StepBoot)))
		}
		return out
	}
	if a, b := run(), run(); strings.Join(a, ",") != strings.Join(b, ",") {
		t.Fatal("one seed made different faults")
	}
}
