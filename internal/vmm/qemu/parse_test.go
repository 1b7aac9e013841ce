package qemu

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": "7.2.22",
		"QEMU emulator version 10.0.2":                                              "10.0.2",
		"QEMU emulator version 7":                                                   "",
		"":                                                                          "",
	} {
		got, err := ParseVersion([]byte(text))
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	v := Version{9, 1, 0}
	if !v.AtLeast(9, 1) || !v.AtLeast(8, 2) || v.AtLeast(9, 2) || v.AtLeast(10, 0) {
		t.Error("AtLeast")
	}
}

func TestArgsByVersion(t *testing.T) {
	for _, tc := range []struct {
		version Version
		want    []string
		not     []string
	}{
		{Version{7, 2, 0}, []string{"-chroot .", "-runas 7:7", "share=off "}, []string{"-run-with", "readonly=on,rom"}},
		{Version{8, 1, 0}, []string{"-run-with chroot=.", "-runas 7:7"}, []string{"-chroot", "rom=off"}},
		{Version{8, 2, 0}, []string{"-run-with chroot=.", "-runas 7:7", "share=off,readonly=on,rom=off "}, []string{"-chroot"}},
		{Version{9, 1, 0}, []string{"-run-with chroot=.,user=7:7", "rom=off"}, []string{"-chroot", "-runas"}},
	} {
		l := launch{platform: platform{hypervisor: &hypervisor{version: tc.version}, accel: AccelTCG, cpu: tcgCPU}, thaw: true, uid: 7, files: sockets,
			cfg: vmm.Config{ID: "x", VCPUs: 2, MemoryMiB: 64, Drives: []vmm.Drive{{ID: "rootfs", Path: "/a,b", ReadOnly: true}}}}
		line := strings.Join(l.args(), " ") + " "
		for _, want := range tc.want {
			if !strings.Contains(line, want) {
				t.Errorf("%s: no %q in %s", tc.version, want, line)
			}
		}
		for _, not := range append(tc.not, "/a,b", "-kernel") {
			if strings.Contains(line, not) {
				t.Errorf("%s: %q in %s", tc.version, not, line)
			}
		}
		for _, word := range l.args() {
			if strings.HasPrefix(word, "virtio-net") || strings.HasPrefix(word, "-net") || strings.HasPrefix(word, "-nic") {
				t.Errorf("%s: a network device that nobody asked for: %s", tc.version, line)
			}
		}
		l.uid, l.thaw = -1, false
		if line := strings.Join(l.args(), " "); strings.Contains(line, "chroot") || !strings.Contains(line, "elevateprivileges=deny") || !slices.Contains(l.args(), "-kernel") {
			t.Errorf("%s without a user of its own: %s", tc.version, line)
		}
	}
}

func TestArgsOfNIC(t *testing.T) {
	const mac = "02:53:50:00:00:01"
	var devices []string
	for backend, nic := range map[string]*vmm.NIC{
		"": {MAC: mac}, "tap,id=net0,fd=7,vhost=off": {MAC: mac, Tap: "tap0", NetNS: "/n"}, "socket,id=net0,fd=7": {MAC: mac, Socket: "/s"},
	} {
		l := launch{platform: platform{hypervisor: &hypervisor{version: Version{7, 2, 0}}, accel: AccelTCG, cpu: tcgCPU}, files: sockets, cfg: vmm.Config{ID: "x", VCPUs: 1, MemoryMiB: 64, NIC: nic}}
		args := l.args()
		i := slices.Index(args, "-netdev")
		if (i < 0) != (backend == "") || i >= 0 && args[i+1] != backend {
			t.Errorf("%+v: %q", *nic, args)
		}
		for _, word := range args {
			if device, ok := strings.CutPrefix(word, "virtio-net-pci,"); ok {
				device, _, _ = strings.Cut(device, ",netdev=")
				devices = append(devices, device)
			}
		}
	}
	if slices.Sort(devices); len(devices) != 3 || len(slices.Compact(devices)) != 1 {
		t.Errorf("the device depends on its cable: %q", devices)
	}
}

func TestStateEnvelope(t *testing.T) {
	s := shape{VCPUs: 1, MemoryMiB: 64}
	var buf bytes.Buffer
	must(t, writeState(&buf, "f", s, []byte("payload")))
	buf.WriteString("what follows is someone else's")
	got, err := readState(bytes.NewReader(buf.Bytes()), "f", s)
	if err != nil || string(got) != "payload" {
		t.Fatalf("%q, %v", got, err)
	}
	_, err = readState(bytes.NewReader(buf.Bytes()), "g", s)
	if spore.CodeOf(err) != spore.CodeStale {
		t.Errorf("another format: %v", err)
	}
}

func FuzzReadState(f *testing.F) {
	s := shape{VCPUs: 1, MemoryMiB: 64}
	var buf bytes.Buffer
	if err := writeState(&buf, "f", s, []byte("payload")); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte(stateMagic + `{"size": -1}` + "\n"))
	f.Add([]byte(stateMagic + `{"size": 1e30}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		payload, err := readState(bytes.NewReader(text), "f", s)
		if err != nil {
			switch spore.CodeOf(err) {
			case spore.CodeDamaged, spore.CodeStale, spore.CodeConflict:
			default:
				t.Fatal(err)
			}
			return
		}
		if !bytes.Contains(text, payload) {
			t.Fatal("the payload is not part of what was read")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("QEMU emulator version 7.2.22"))
	f.Add([]byte("1 (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0"))
	f.Add([]byte(`{"id":"x","pid":1,"start":2,"bootId":"b"}`))
	f.Add([]byte(`{"accel":"kvm"}`))
	f.Add([]byte("model name : x\nflags : a b\n\n"))
	f.Add([]byte(`qemu: -blockdev driver=raw,node-name=raw-disk1,file=file-disk1: Failed to get "write" lock`))
	f.Fuzz(func(t *testing.T, text []byte) {
		ParseVersion(text)
		if e := lockRefusal(string(text), []vmm.Drive{{ID: "disk"}, {ID: "disk1", Path: "/x", Foreign: true}}); e != nil && e.Code != spore.CodeInUse {
			t.Fatal(e)
		}
		parseStat(text)
		parseCPU(string(text))
		if r, err := parseRecord(text); err == nil && r.PID <= 0 {
			t.Fatalf("%+v", r)
		}
		if v, ok := parseVerdict(text); ok && v.Accel != AccelKVM && v.Accel != AccelTCG {
			t.Fatalf("%+v", v)
		}
		if out := vmlog.LastLines(text, 3); strings.ContainsAny(out, "\n\r\x1b") {
			t.Fatalf("%q", out)
		}
	})
}

func TestRecordRoundTrip(t *testing.T) {
	want := record{ID: "x", PID: 5, BootID: "b"}
	text, err := json.Marshal(want)
	must(t, err)
	got, err := parseRecord(text)
	if err != nil || got.ID != want.ID || got.PID != want.PID {
		t.Fatal(got, err)
	}
	if got.lives() {
		t.Error("a record of another boot counts as alive")
	}
}

// A process is the recorded one from its start to its end, also while its program is still being put in place and has no
// arguments yet, as a QEMU is when its record is written.
func TestRecordedProcessLives(t *testing.T) {
	child := exec.Command("sh", "-c", "read line; exec sleep 60")
	stdin, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	boot, err := bootID()
	must(t, err)
	start, err := startTime(child.Process.Pid)
	must(t, err)
	r := record{PID: child.Process.Pid, Start: start, BootID: boot}
	if !r.lives() {
		t.Error("it does not live before its program changes")
	}
	_, err = io.WriteString(stdin, "\n")
	must(t, err)
	name := func() string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child.Process.Pid))
		must(t, err)
		return strings.TrimSpace(string(text))
	}
	for name() != "sleep" {
		if !r.lives() {
			t.Fatal("it does not live while its program changes")
		}
	}
	if !r.lives() {
		t.Error("it does not live after its program changed")
	}
	must(t, child.Process.Kill())
	_ = child.Wait()
	if r.lives() {
		t.Error("it lives after its end")
	}
}

func TestParseStat(t *testing.T) {
	state, start, err := parseStat([]byte("77 (qemu ) S (x) R 1 77 77 0 -1 4194304 1 0 0 0 1 2 0 0 20 0 3 0 987654 1 2"))
	if err != nil || state != 'R' || start != 987654 {
		t.Fatal(string(state), start, err)
	}
}
