package qemu

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm"
)

// BenchmarkThaw measures from nothing to the guest's first answer: through the engine, and with the barest QEMU that
// does the same, in one run. The steps are reported as metrics in milliseconds.
func BenchmarkThaw(b *testing.B) {
	h := harness(b)
	dir := b.TempDir()
	engine := h.New(b)
	cfg := vmm.Config{ID: "base", Dir: filepath.Join(dir, "base"), VCPUs: 1, MemoryMiB: 256, Kernel: h.Kernel, Initrd: h.Initrd, Memory: filepath.Join(dir, "memory")}
	must(b, os.Mkdir(cfg.Dir, 0o700))
	vm, err := engine.Boot(b.Context(), cfg)
	must(b, err)
	conn, err := vm.DialPort(b.Context(), vmm.PortControl)
	must(b, err)
	greet(b, conn)
	must(b, vm.Pause(b.Context()))
	state := filepath.Join(dir, "state")
	out, err := os.Create(state)
	must(b, err)
	must(b, vm.SaveState(b.Context(), out))
	must(b, out.Close())
	must(b, vm.Kill(b.Context()))

	bare := filepath.Join(dir, "bare.state")
	text, err := os.ReadFile(state)
	must(b, err)
	_, payload, _ := bytes.Cut(text, []byte("\n"))
	must(b, os.WriteFile(bare, payload, 0o600))

	// In turns, so that what else the machine does weighs on both alike.
	times := map[string][]time.Duration{}
	for i := range b.N {
		cfg.ID = fmt.Sprintf("thaw%d", i)
		cfg.Dir = filepath.Join(b.TempDir(), "vm")
		must(b, os.Mkdir(cfg.Dir, 0o700))
		in, err := os.Open(state)
		must(b, err)
		began := time.Now()
		last := began
		step := func(name string) { now := time.Now(); times[name] = append(times[name], now.Sub(last)); last = now }
		vm, err := engine.Thaw(b.Context(), cfg, vmm.Image{State: in})
		must(b, err)
		in.Close()
		step("thawed")
		must(b, vm.Resume(b.Context()))
		step("resumed")
		conn, err := vm.DialPort(b.Context(), vmm.PortControl)
		must(b, err)
		greet(b, conn)
		step("answered")
		times["spore"] = append(times["spore"], time.Since(began))
		b.ReportMetric(pss(b, vm.PID()), "spore-MiB")
		must(b, vm.Kill(b.Context()))

		began = time.Now()
		end := bareThaw(b, b.TempDir(), cfg, bare)
		times["bare"] = append(times["bare"], time.Since(began))
		end()
	}
	median := func(name string) float64 {
		slices.Sort(times[name])
		return float64(times[name][len(times[name])/2].Microseconds()) / 1000
	}
	for name := range times {
		b.ReportMetric(median(name), name+"-ms")
	}
	b.ReportMetric(median("spore")/median("bare"), "ratio")
}

// bareThaw is a thaw with nothing around it: no sandbox, no user of its own, no console.
func bareThaw(b *testing.B, dir string, cfg vmm.Config, state string) (end func()) {
	b.Helper()

	size := fmt.Sprintf("%dM", cfg.MemoryMiB)

	cmd := exec.Command("qemu-system-x86_64", "-M", machineType+",suppress-vmdesc=on,memory-backend=ram,usb=off,vmport=off,sata=off,smbus=off,hpet=off",
		"-accel", "tcg", "-cpu", tcgCPU, "-nodefaults", "-no-user-config", "-display", "none", "-m", size, "-S", "-incoming", "defer",
		"-global", "migration.send-configuration=off", "-object", "memory-backend-file,id=ram,size="+size+",mem-path="+cfg.Memory+",share=off",
		"-kernel", cfg.Kernel, "-initrd", cfg.Initrd,
		"-chardev", "null,id=console", "-serial", "chardev:console", "-qmp", "unix:qmp,server=on,wait=off",
		"-chardev", "socket,id=control,path=control,server=on,wait=off", "-chardev", "socket,id=data,path=data,server=on,wait=off",
		"-device", fmt.Sprintf("virtio-serial-pci,id=ports,bus=pcie.0,addr=%d,max_ports=4,disable-legacy=on", slotSerial),
		"-device", "virtserialport,bus=ports.0,nr=1,chardev=control,name="+vmm.PortControl,
		"-device", "virtserialport,bus=ports.0,nr=2,chardev=data,name="+vmm.PortData)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	must(b, cmd.Start())
	dial := func(name string) net.Conn {
		for {
			conn, err := net.Dial("unix", filepath.Join(dir, name))
			if err == nil {
				return conn
			}
			time.Sleep(time.Millisecond)
		}
	}
	monitor := dial("qmp")
	in := json.NewDecoder(monitor)
	do := func(command string) (status string) {
		fmt.Fprintln(monitor, command)
		for {
			var m struct {
				Return *struct{ Status string }
				Error  any
			}
			must(b, in.Decode(&m))
			if m.Error != nil {
				b.Fatal(command, m.Error)
			}
			if m.Return != nil {
				return m.Return.Status
			}
		}
	}
	do(`{"execute": "qmp_capabilities"}`)
	do(`{"execute": "migrate-incoming", "arguments": {"uri": "exec:cat ` + state + `"}}`)
	for do(`{"execute": "query-migrate"}`) != "completed" {
		time.Sleep(500 * time.Microsecond)
	}
	do(`{"execute": "cont"}`)
	greet(b, dial("control"))
	return func() {
		b.ReportMetric(pss(b, cmd.Process.Pid), "bare-MiB")
		cmd.Process.Kill()
		cmd.Wait()
	}
}

func greet(b testing.TB, conn net.Conn) {
	b.Helper()
	word := fmt.Sprintf("hello-%d", time.Now().UnixNano())
	in := bufio.NewReader(conn)
	for {
		_, err := io.WriteString(conn, "\n"+word+"\n")
		must(b, err)
		must(b, conn.SetReadDeadline(time.Now().Add(time.Second)))
		for {
			line, err := in.ReadString('\n')
			if line == word+"\n" {
				return
			}
			if err != nil && !os.IsTimeout(err) {
				b.Fatal(err)
			}
			if err != nil {
				break
			}
		}
	}
}

func pss(b testing.TB, pid int) float64 {
	b.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(b, err)
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		var kib float64
		if n, _ := fmt.Sscanf(in.Text(), "Pss: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	b.Fatal("no Pss")
	return 0
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
