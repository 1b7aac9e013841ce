package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// machine is a bare VM for the tests of this package: what an engine does, without an engine.
type machine struct {
	t    testing.TB
	dir  string
	cmd  *exec.Cmd
	qmp  net.Conn
	in   *bufio.Reader
	done chan struct{}

	mu    sync.Mutex
	ports map[string]net.Conn // as an engine does it: a second dial replaces the first
}

const testMemoryMiB = 160

// startMachine starts a VM, incoming if state is to be loaded. The RAM file is mapped privately then.
func startMachine(t testing.TB, kernel, initrd, memory, disk, rootfs string, incoming bool) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "g") // short: the paths of unix sockets are
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, done: make(chan struct{}), ports: map[string]net.Conn{}}
	share := "on"
	if incoming {
		share = "off"
	}
	args := []string{
		"-M", "q35,accel=tcg,suppress-vmdesc=on,memory-backend=ram", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-m", fmt.Sprint(testMemoryMiB), "-smp", "1", "-global", "migration.send-configuration=off",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s", testMemoryMiB, memory, share),
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
		"-serial", "file:" + dir + "/console", "-qmp", "unix:" + dir + "/qmp,server=on,wait=off",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=c,path=" + dir + "/spore.control,server=on,wait=off", "-device", "virtserialport,chardev=c,name=spore.control",
		"-chardev", "socket,id=d,path=" + dir + "/spore.data,server=on,wait=off", "-device", "virtserialport,chardev=d,name=spore.data",
		"-drive", "if=none,id=r,format=raw,readonly=on,file.locking=off,file=" + rootfs, "-device", "virtio-blk-pci,drive=r,serial=rootfs",
		"-drive", "if=none,id=k,format=raw,file.locking=off,file=" + disk, "-device", "virtio-blk-pci,drive=k,serial=disk",
	}
	if incoming {
		args = append(args, "-S", "-incoming", "defer")
	}
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.cmd.Wait(); close(m.done) }()
	t.Cleanup(m.stop)
	for {
		if m.qmp, err = net.Dial("unix", dir+"/qmp"); err == nil {
			break
		}
		select {
		case <-m.done:
			t.Fatal("the VM has ended at its start")
		case <-time.After(time.Millisecond):
		}
	}
	m.in = bufio.NewReader(m.qmp)
	if _, err := m.in.ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	m.do("qmp_capabilities", nil)
	return m
}

func (m *machine) stop() {
	m.cmd.Process.Kill() // fails when it has ended
	<-m.done
	if m.t.Failed() {
		if out, err := os.ReadFile(m.dir + "/console"); err == nil {
			m.t.Logf("console:\n%s", out[max(0, len(out)-4000):])
		}
	}
	if m.qmp != nil {
		m.qmp.Close()
	}
	os.RemoveAll(m.dir)
}

// do runs one QMP command.
func (m *machine) do(command string, args map[string]any) map[string]any {
	m.t.Helper()
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	line, err := json.Marshal(req)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.qmp.Write(append(line, '\n')); err != nil {
		m.t.Fatal(err)
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			m.t.Fatalf("%s: %v", command, err)
		}
		var res struct {
			Return map[string]any
			Error  map[string]any
		}
		if err := json.Unmarshal(line, &res); err != nil {
			m.t.Fatalf("%s: %s: %v", command, line, err)
		}
		if res.Error != nil {
			m.t.Fatalf("%s: %v", command, res.Error)
		}
		if res.Return != nil {
			return res.Return
		}
	}
}

func (m *machine) dial(ctx context.Context, port string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.ports[port]; old != nil {
		old.Close()
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(m.dir, port))
	if err == nil {
		m.ports[port] = c
	}
	return c, err
}

// freeze stops the VM and saves its device state.
func (m *machine) freeze(state string) {
	m.t.Helper()
	m.do("stop", nil)
	m.do("xen-save-devices-state", map[string]any{"filename": state, "live": false})
}

// thaw loads device state and lets the VM run.
func (m *machine) load(state string) {
	m.t.Helper()
	m.do("migrate-incoming", map[string]any{"uri": "exec:cat " + state})
	for m.do("query-migrate", nil)["status"] != "completed" {
		time.Sleep(500 * time.Microsecond)
	}
}

// template is a frozen machine.
type template struct {
	kernel, initrd, rootfs, disk, memory, state string
}

// thaw starts a machine from the template on a copy of its disk, ready to run.
func (f template) thaw(t testing.TB) *machine {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	copyFile(t, disk, f.disk)
	m := startMachine(t, f.kernel, f.initrd, f.memory, disk, f.rootfs, true)
	m.load(f.state)
	return m
}

func copyFile(t testing.TB, to, from string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

// makeDrives makes a root with busybox, and a blank disk.
func makeDrives(t testing.TB, dir string) (rootfs, disk string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	for path, text := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home/worker:/bin/sh\n",
		"etc/group":   "root:x:0:\nworker:x:1000:\naudio:x:29:worker\n",
		"etc/hosts":   "127.0.0.1 localhost\n",
		"home/x/keep": "",
	} {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(root, "bin/busybox"), "/bin/busybox")
	if err := os.Chmod(filepath.Join(root, "bin/busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "echo", "sleep", "id", "true", "stty", "hostname", "md5sum", "httpd", "yes", "dd", "mount", "ls", "nc", "date", "grep", "ps", "stat", "wc", "tty", "mkdir"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return makeFilesystems(t, dir, root)
}

// makeFilesystems makes an image of root, and a blank disk.
func makeFilesystems(t testing.TB, dir, root string) (rootfs, disk string) {
	t.Helper()
	rootfs, disk = filepath.Join(dir, "rootfs"), filepath.Join(dir, "disk")
	for file, args := range map[string][]string{rootfs: {"-d", root}, disk: nil} {
		args = append(append([]string{"-q", "-F"}, args...), file, "64M")
		if out, err := exec.Command("/usr/sbin/mkfs.ext4", args...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v\n%s", err, out)
		}
	}
	return rootfs, disk
}
