package fcdouble_test

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// serve answers page faults from a memory file until the other end's descriptor is closed, and counts them.
func serve(t testing.TB, l *net.UnixListener, memory string, minor int) (count func() int) {
	t.Helper()
	text, err := os.ReadFile(memory)
	must(t, err)
	served := make(chan int, 1)
	stop := make(chan struct{})
	go func() {
		n := 0
		defer func() { served <- n }()
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		buf, oob := make([]byte, 4096), make([]byte, 64)
		read, control, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Error(err)
			return
		}
		var maps []struct {
			Base        uint64 `json:"base_host_virt_addr"`
			Size        uint64 `json:"size"`
			Offset      uint64 `json:"offset"`
			PageSize    int    `json:"page_size"`
			PageSizeKiB int    `json:"page_size_kib"`
		}
		if err := json.Unmarshal(buf[:read], &maps); err != nil || len(maps) != 1 || maps[0].Size != uint64(len(text)) ||
			(maps[0].PageSize == 4096) != (minor >= 12) || maps[0].PageSizeKiB != 4096 {
			t.Errorf("the layout is %s, %v", buf[:read], err)
			return
		}
		messages, err := unix.ParseSocketControlMessage(oob[:control])
		if err != nil || len(messages) != 1 {
			t.Errorf("%d messages, %v", len(messages), err)
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Errorf("%d descriptors, %v", len(fds), err)
			return
		}
		defer unix.Close(fds[0])
		for {
			select {
			case <-stop:
				return
			default:
			}
			poll := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
			if k, err := unix.Poll(poll, 20); k == 0 || errors.Is(err, unix.EINTR) {
				continue
			}
			var message [32]byte
			if k, err := unix.Read(fds[0], message[:]); err != nil || k != len(message) {
				return // the VM has gone
			}
			if message[0] != 0x12 { // a page fault
				continue
			}
			address := *(*uint64)(unsafe.Pointer(&message[16])) &^ 4095
			from := text[address-maps[0].Base+maps[0].Offset:]
			arg := [5]uint64{address, uint64(uintptr(unsafe.Pointer(&from[0]))), 4096, 0, 0}
			const uffdCopy = 0xc028aa03
			if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), uffdCopy, uintptr(unsafe.Pointer(&arg))); no != 0 && no != unix.EEXIST {
				t.Error(no)
				return
			}
			n++
		}
	}()
	return func() int {
		close(stop)
		return <-served
	}
}

func TestPageServer(t *testing.T) {
	program, dir := double(t, ""), shortDir(t)
	sock := filepath.Join(dir, "v.sock")
	p := boot(t, program, dir, "")
	g := control(t, sock)
	g.ask("fill 1024 1")
	sum := g.ask("sum")
	p.do("PATCH", "/vm", pause)
	snapshot(p, dir, "x", "Full")
	p.kill()
	must(t, os.Remove(sock))

	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "u.sock"), Net: "unix"})
	must(t, err)
	defer l.Close()
	must(t, l.SetDeadline(time.Now().Add(patience)))
	count := serve(t, l, filepath.Join(dir, "memory-x"), 17)
	p = launch(t, program, dir)
	a := p.ask("PUT", "/snapshot/load", `{"snapshot_path":"`+dir+`/state-x","mem_backend":{"backend_type":"Uffd","backend_path":"`+dir+`/u.sock"},"resume_vm":true}`)
	if a.status != 204 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if got := control(t, sock).ask("sum"); got != sum {
		t.Errorf("memory sum %s, want %s", got, sum)
	}
	p.kill()
	if n := count(); n < 256 || n > 1024 {
		t.Errorf("%d faults were served for 257 pages", n)
	}
}

// TestPageServerDies leaves the guest without pages: it hangs, and the API still answers.
func TestPageServerDies(t *testing.T) {
	program, dir := double(t, ""), shortDir(t)
	p := boot(t, program, dir, "")
	p.do("PATCH", "/vm", pause)
	snapshot(p, dir, "x", "Full")
	p.kill()
	must(t, os.Remove(filepath.Join(dir, "v.sock")))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "u.sock"), Net: "unix"})
	must(t, err)
	defer l.Close()
	p = launch(t, program, dir)
	p.do("PUT", "/snapshot/load", `{"snapshot_path":"%s/state-x","mem_backend":{"backend_type":"Uffd","backend_path":"%[1]s/u.sock"},"resume_vm":true}`, dir)
	g := control(t, filepath.Join(dir, "v.sock"))
	if _, err := g.conn.Write([]byte("sum\n")); err != nil {
		t.Fatal(err)
	}
	must(t, g.conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if _, err := g.in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a guest without its pages answers: %v", err)
	}
	p.do("GET", "/", "")
}

// TestHandshake loads with a page server, under a real Firecracker and the stand-in for it.
func TestHandshake(t *testing.T) {
	path, version, minor := real(t, "SPORE_FIRECRACKER")
	for _, program := range []string{path, double(t, version)} {
		dir := shortDir(t)
		furnish(t, dir)
		save(t, program, dir)
		noSocket(t, dir)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "u.sock"), Net: "unix"})
		must(t, err)
		must(t, l.SetDeadline(time.Now().Add(patience)))
		count := serve(t, l, filepath.Join(dir, "memory"), minor)
		p := launch(t, program, dir)
		p.do("PUT", "/snapshot/load", `{"snapshot_path":"%s/state","mem_backend":{"backend_type":"Uffd","backend_path":"%[1]s/u.sock"}}`, dir)
		p.do("PATCH", "/vm", resume)
		p.do("PATCH", "/vm", pause)
		p.kill()
		count()
		l.Close()
	}
}
