package pager_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// What the guest says; Firecracker prints letters to the same place.
const (
	ready = 1 + iota
	right
	wrong
)

// guest is a kernel of a few instructions. It writes into each page from 16 MiB to 48 MiB that page's address and says that
// it is ready; then it compares them all, again and again, and says each time that they are right, or that one is wrong and
// no more.
var guest = []byte{
	0xbf, 0, 0, 0, 1, //                  mov edi, 16 MiB
	0x48, 0x89, 0x3f, //                  write: mov [rdi], rdi
	0x48, 0x81, 0xc7, 0, 0x10, 0, 0, //   add rdi, 4096
	0x48, 0x81, 0xff, 0, 0, 0, 3, //      cmp rdi, 48 MiB
	0x72, 0xed, //                        jb write
	0x66, 0xba, 0xf8, 3, 0xb0, ready, 0xee, // out 0x3f8, ready
	0xbf, 0, 0, 0, 1, //                  again: mov edi, 16 MiB
	0x48, 0x39, 0x3f, //                  read: cmp [rdi], rdi
	0x75, 0x15, //                        jne bad
	0x48, 0x81, 0xc7, 0, 0x10, 0, 0, //   add rdi, 4096
	0x48, 0x81, 0xff, 0, 0, 0, 3, //      cmp rdi, 48 MiB
	0x72, 0xeb, //                        jb read
	0xb0, right, 0xee, //                 out 0x3f8, right
	0xeb, 0xe1, //                        jmp again
	0xb0, wrong, 0xee, 0xeb, 0xfe, //     bad: out 0x3f8, wrong; stay
}

// elf is a kernel image of the code, loaded and entered at 1 MiB.
func elf(code []byte) []byte {
	b := append([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, make([]byte, 9)...)
	le := binary.LittleEndian
	for _, v := range []uint16{2, 62} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{1 << 20, 64, 0} { // entry, program headers, sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(le.AppendUint32(b, 1), 7)
	for _, v := range []uint64{4096, 1 << 20, 1 << 20, uint64(len(code)), uint64(len(code)), 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(append(b, make([]byte, 4096-len(b))...), code...)
}

// firecracker is a real one.
type firecracker struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  io.Reader
	http http.Client
}

func startFirecracker(t *testing.T, binary, socket string) *firecracker {
	t.Helper()
	cmd := exec.Command(binary, "--api-sock", socket, "--id", "pager-test")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	f := &firecracker{t: t, cmd: cmd, out: out}
	f.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	until(t, "Firecracker answers", func() bool {
		r, err := f.http.Get("http://fc/")
		if err == nil {
			r.Body.Close()
		}
		return err == nil
	})
	return f
}

func (f *firecracker) ask(method, path, body string) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), method, "http://fc"+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	answer, err := f.http.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusNoContent {
		f.t.Fatalf("%s %s: %s %s", method, path, answer.Status, text)
	}
}

// says waits until the guest has said each of the words in turn.
func (f *firecracker) says(words ...byte) {
	f.t.Helper()
	said := make(chan error, 1)
	go func() {
		var b [1]byte
		for i := 0; i < len(words); {
			if _, err := f.out.Read(b[:]); err != nil {
				said <- err
				return
			}
			if b[0] == wrong {
				said <- fmt.Errorf("the guest found a page that is wrong")
				return
			}
			if b[0] == words[i] {
				i++
			}
		}
		said <- nil
	}()
	select {
	case err := <-said:
		if err != nil {
			f.t.Fatal(err)
		}
	case <-f.t.Context().Done():
	}
}

// TestFirecracker serves a real Firecracker the memory of its own snapshot, half of it from a base and half from patches.
// The guest looks at all of it.
func TestFirecracker(t *testing.T) {
	binary := os.Getenv("SPORE_FIRECRACKER")
	if binary == "" {
		t.Skip("SPORE_FIRECRACKER names no Firecracker")
	}
	f := newFrozen(t, mib, 1)
	kernel, state := filepath.Join(f.dir, "kernel"), filepath.Join(f.dir, "state")
	if err := os.WriteFile(kernel, elf(guest), 0o600); err != nil {
		t.Fatal(err)
	}
	first := startFirecracker(t, binary, filepath.Join(f.dir, "fc1"))
	first.ask("PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64}`)
	first.ask("PUT", "/boot-source", fmt.Sprintf(`{"kernel_image_path":%q,"boot_args":"none"}`, kernel))
	first.ask("PUT", "/actions", `{"action_type":"InstanceStart"}`)
	first.says(ready, right)
	first.ask("PATCH", "/vm", `{"state":"Paused"}`)
	first.ask("PUT", "/snapshot/create", fmt.Sprintf(`{"snapshot_path":%q,"mem_file_path":%q}`, state, filepath.Join(f.dir, "memory")))
	f.want = plain(t, filepath.Join(f.dir, "memory"))
	f.patches = nil
	base := bytes.Clone(f.want)
	for off := int64(0); off < int64(len(base)); off += 64 << 10 {
		f.patches = append(f.patches, struct {
			off  int64
			data []byte
		}{off, f.want[off : off+32<<10]})
		clear(base[off : off+32<<10])
	}
	if err := os.WriteFile(f.base, base, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := f.config()
	cfg.HotSet = filepath.Join(f.dir, "hot")
	if err := (&pager.HotSet{Size: int64(len(base)), Windows: []int64{20 * mib, 20*mib + 32<<10, 30 * mib}}).Save(cfg.HotSet); err != nil {
		t.Fatal(err)
	}
	h := f.start(t, cfg)
	second := startFirecracker(t, binary, filepath.Join(f.dir, "fc2"))
	second.ask("PUT", "/snapshot/load", fmt.Sprintf(`{"snapshot_path":%q,"mem_backend":{"backend_type":"Uffd","backend_path":%q},"resume_vm":true}`, state, cfg.Socket))
	if err := h.Attached(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.says(right, right, right)
	s := stats(t, h)
	t.Logf("%+v, half of the faults within %v, 99 %% within %v", s, s.Percentile(0.5), s.Percentile(0.99))
	if s.Faults == 0 || s.Prefetched == 0 {
		t.Errorf("%+v", s)
	}
	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	soon(t, h.Done(), "the pager ends with Firecracker")
	if err := h.Err(); err != nil {
		t.Error(err)
	}
}
