package firecracker

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"Firecracker v1.10.1\n": {1, 10, 1}, "Firecracker v1.17.0-dev\n\n2026-11-22T00:44 [x] exiting": {1, 17, 0},
		"v11.0.0\n": {11, 0, 0}, "Firecracker v1.13.1-abc": {1, 13, 1},
	} {
		if got, err := ParseVersion([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "Firecracker", "v1.2", "v1.2.x", "v99999999.1.1", "v1.2.3.4"} {
		if got, err := ParseVersion([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add([]byte("Firecracker v1.17.0-dev\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := ParseVersion(text)
		if err != nil {
			return
		}
		if again, err := ParseVersion([]byte("v" + v.String())); err != nil || again != v {
			t.Fatalf("%v, %v", again, err)
		}
		if _, _, ok := parseStateFormat(string(text)); ok && !bytes.HasPrefix(text, []byte("firecracker-")) {
			t.Fatalf("%q", text)
		}
	})
}

func TestFeatures(t *testing.T) {
	if f := FeaturesOf(Version{1, 10, 1}); f != (Features{}) {
		t.Errorf("1.10: %+v", f)
	}
	if len(Missing(Version{1, 10, 0})) != len(featureTable) || len(Missing(newest)) != 0 {
		t.Errorf("%v, %v", Missing(Version{1, 10, 0}), Missing(newest))
	}
	f := FeaturesOf(Version{1, 13, 1})
	if !f.NetworkOverrides || !f.TrackDirtyPages || f.Serial || f.VsockOverride {
		t.Errorf("1.13: %+v", f)
	}
}

func TestReader(t *testing.T) {
	all := []*Binary{
		{Version: Version{1, 17, 0}, Snapshot: Version{11, 0, 0}}, {Version: Version{1, 14, 0}, Snapshot: Version{8, 0, 0}},
		{Version: Version{1, 13, 0}, Snapshot: Version{8, 0, 0}},
	}
	for format, want := range map[Version]Version{{11, 0, 0}: {1, 17, 0}, {8, 0, 0}: {1, 14, 0}} {
		if b, err := reader(all, format, ""); err != nil || b.Version != want {
			t.Errorf("%v: %v, %v", format, b, err)
		}
	}
	_, err := reader(all, Version{9, 0, 0}, "1.15.2")
	want := "it was frozen by Firecracker 1.15.2, format 9.0.0; installed: 1.17.0 (format 11.0.0), 1.14.0 (format 8.0.0), 1.13.0 (format 8.0.0)"
	if e := spore.AsError(err); e.Code != spore.CodeStale || !strings.Contains(e.Hint, "install Firecracker 1.15 ") || !strings.HasSuffix(e.Message, want) {
		t.Errorf("%+v", e)
	}
	if _, err := reader(all, Version{11, 1, 0}, "1.18.0"); spore.CodeOf(err) != spore.CodeStale || !strings.Contains(spore.AsError(err).Hint, "install Firecracker 1.18.0 ") {
		t.Errorf("a later minor format: %v", err)
	}
}

func TestStateFormat(t *testing.T) {
	cpu := parseCPU("vendor_id\t: AuthenticAMD\nmodel name\t: EPYC\nflags\t\t: b a b\n\nvendor_id\t: Other\n")
	if cpu.name != "host: EPYC" || !strings.HasPrefix(cpu.features, "AuthenticAMD/") {
		t.Errorf("%+v", cpu)
	}
	text := stateFormat(Version{11, 0, 0}, cpu)
	if v, digest, ok := parseStateFormat(text); !ok || v != (Version{11, 0, 0}) || digest != digestOf(cpu.features) {
		t.Errorf("%s: %v, %s", text, v, digest)
	}
	for _, bad := range []string{"", "qemu-7.2/x", "firecracker-", "firecracker-11/x", "firecracker-11.0.0", "firecracker-11.0.0-x/y", "firecracker-011.0.0/y"} {
		if _, _, ok := parseStateFormat(bad); ok {
			t.Errorf("%q is taken", bad)
		}
	}
}

var someShape = shape{VCPUs: 1, MemoryMiB: 128, MAC: "02:00:00:00:00:01", Drives: []shapeDrive{{ID: "disk", Size: 4096}}}

func saved(t testing.TB, payload []byte) []byte {
	var out bytes.Buffer
	must(t, writeState(&out, envelope{Format: "firecracker-11.0.0/x", Shape: someShape, Tap: "tap0", Limits: []vmm.DriveLimits{{OpsPerSecond: 5}}}, payload))
	return out.Bytes()
}

func TestState(t *testing.T) {
	text := saved(t, []byte("devices\nand more"))
	s, err := readState(bytes.NewReader(text), someShape)
	if err != nil || string(s.payload) != "devices\nand more" || s.Tap != "tap0" || s.limits(0).OpsPerSecond != 5 || s.limits(1) != (vmm.DriveLimits{}) {
		t.Fatalf("%+v, %v", s, err)
	}
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 0x10
		if s, err := readState(bytes.NewReader(bad), someShape); err == nil && !bytes.Equal(s.payload, []byte("devices\nand more")) {
			t.Errorf("byte %d changed: %q", i, s.payload)
		}
		if _, err := readState(bytes.NewReader(text[:i]), someShape); spore.CodeOf(err) != spore.CodeDamaged {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	for name, edit := range map[string]func(*shape){
		"CPUs": func(s *shape) { s.VCPUs++ }, "memory": func(s *shape) { s.MemoryMiB++ }, "no NIC": func(s *shape) { s.MAC = "" },
		"no drives": func(s *shape) { s.Drives = nil }, "size": func(s *shape) { s.Drives[0].Size++ },
	} {
		want := someShape
		want.Drives = slices.Clone(someShape.Drives)
		edit(&want)
		if _, err := readState(bytes.NewReader(text), want); spore.CodeOf(err) != spore.CodeConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadState(f *testing.F) {
	f.Add(saved(f, []byte("devices")))
	f.Add([]byte(stateMagic + "{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := readState(bytes.NewReader(text), someShape)
		if err == nil && (sum(s.payload) != s.Sum || s.Shape.diff(someShape) != "") {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) b) S 1 12 12 0 -1 4194304 1 1 1 1 1 1 1 1 20 0 1 0 12345 1 1"))
	f.Fuzz(func(t *testing.T, text []byte) { parseStat(text) })
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"pid":5,"start":7,"bootId":"x","jail":"fc-1","binary":{"Firecracker":"/f"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := parseRecord(text); err == nil && (r.PID <= 0 || filepath.Base(r.Jail) != r.Jail || r.Binary == nil) {
			t.Fatalf("%+v", r)
		}
	})
}

func FuzzParseVerdict(f *testing.F) {
	f.Add([]byte(`{"works":false,"reason":"stuck","bootId":"x","binary":"/f","mtime":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if v, ok := parseVerdict(text); ok && v.Works == (v.Reason != "") {
			t.Fatalf("%+v", v)
		}
	})
}

func FuzzParseOwned(f *testing.F) {
	entry := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 4096), 8192)
	f.Add(entry)
	f.Add(append(entry, entry...))
	f.Fuzz(func(t *testing.T, text []byte) {
		const size = 1 << 20
		list, err := parseOwned(text, size)
		if err != nil {
			return
		}
		end := int64(-1)
		for _, r := range list {
			if r.Offset <= end || r.Length <= 0 || r.End() > size || r.Offset%vmm.PageSize != 0 || r.Length%vmm.PageSize != 0 {
				t.Fatalf("%+v", list)
			}
			end = r.End()
		}
	})
}

// FuzzRangeSet compares the set with a table of pages.
func FuzzRangeSet(f *testing.F) {
	f.Add([]byte{1, 2, 5, 1, 3, 2, 0, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var set rangeSet
		var pages [300]bool
		for ; len(steps) >= 2; steps = steps[2:] {
			from, n := int(steps[0]), int(steps[1])%40
			set.add(vmm.Range{Offset: int64(from) * vmm.PageSize, Length: int64(n) * vmm.PageSize})
			for i := from; i < from+n; i++ {
				pages[i] = true
			}
		}
		var want rangeSet
		for i, own := range pages {
			switch off := int64(i) * vmm.PageSize; {
			case !own:
			case len(want) > 0 && want[len(want)-1].End() == off:
				want[len(want)-1].Length += vmm.PageSize
			default:
				want = append(want, vmm.Range{Offset: off, Length: vmm.PageSize})
			}
		}
		if !slices.Equal(set, want) {
			t.Fatalf("%v, want %v", set, want)
		}
	})
}

func FuzzCgroupMounts(f *testing.F) {
	f.Add("cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		h := parseCgroupMounts(text, func(string) bool { return true })
		if h.path != "" && (!filepath.IsAbs(h.path) || h.version < 1 || h.version > 2) {
			t.Fatalf("%+v", h)
		}
	})
}

func TestCgroupMounts(t *testing.T) {
	const mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
	if h := parseCgroupMounts(mounts, func(string) bool { return false }); h != (hierarchy{1, "/sys/fs/cgroup/pids"}) {
		t.Errorf("%+v", h)
	}
	if h := parseCgroupMounts(mounts, func(string) bool { return true }); h != (hierarchy{2, "/sys/fs/cgroup/unified"}) {
		t.Errorf("%+v", h)
	}
	if h := parseCgroupMounts("proc /proc proc rw 0 0\n", nil); h.path != "" {
		t.Errorf("%+v", h)
	}
}

// talkTo plays the vsock device: it answers text whatever it is asked.
type talkTo struct {
	io.Reader
	asked bytes.Buffer
}

func (c *talkTo) Write(p []byte) (int, error) { return c.asked.Write(p) }

func TestHandshake(t *testing.T) {
	c := &talkTo{Reader: strings.NewReader("OK 1073741824\nrest")}
	if err := handshake(c, 1024); err != nil || c.asked.String() != "CONNECT 1024\n" {
		t.Errorf("%q, %v", c.asked.String(), err)
	}
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "rest" {
		t.Errorf("%q was taken from the guest", rest)
	}
	for _, answer := range []string{"", "OK", "NO 5\n", strings.Repeat("x", 100)} {
		if err := handshake(&talkTo{Reader: strings.NewReader(answer)}, 1); err == nil {
			t.Errorf("%q is taken", answer)
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte("OK 5\nrest"))
	f.Fuzz(func(t *testing.T, text []byte) {
		err := handshake(&talkTo{Reader: bytes.NewReader(text)}, 1)
		if err == nil && !bytes.HasPrefix(text, []byte("OK ")) {
			t.Fatalf("%q", text)
		}
	})
}

func TestBuckets(t *testing.T) {
	for perSecond, want := range map[int64]tokenBucket{0: {}, 5: {1, 200}, 100: {20, 200}, 999: {199, 199}, 1000: {200, 200}, 10 << 20: {2 << 20, 200}} {
		if got := *bucket(perSecond); got != want {
			t.Errorf("%d: %+v", perSecond, got)
		}
	}
	for _, l := range []vmm.DriveLimits{{BytesPerSecond: -1}, {OpsPerSecond: -1}, {BytesPerSecond: 1<<63 - 1}} {
		if err := checkLimits(l); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestLayouts(t *testing.T) {
	for size, want := range map[int64]int{128 << 20: 2, 3200 << 20: 2, 8 << 30: 2, 300 << 30: 4} {
		all := layouts(size)
		if len(all) != want {
			t.Errorf("%d: %v", size, all)
		}
		for _, layout := range all {
			var total int64
			for _, n := range layout {
				total += n
			}
			if total != size {
				t.Errorf("%d: %v", size, layout)
			}
		}
	}
}

func TestPunchZeros(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	data := make([]byte, 3<<20+vmm.PageSize)
	for _, off := range []int{0, 1 << 20, 3 << 20} {
		data[off+100] = 7
	}
	must(t, os.WriteFile(path, data, 0o600))
	must(t, punchZeros(t.Context(), path))
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the content has changed (%v)", err)
	}
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	held, err := extents(f, int64(len(data)))
	must(t, err)
	var total int64
	for _, r := range held {
		total += r.Length
	}
	if total > 256<<10 {
		t.Errorf("three pages take %d bytes: %v", total, held)
	}
}

func TestFlatten(t *testing.T) {
	dir := t.TempDir()
	base, flat := filepath.Join(dir, "base"), filepath.Join(dir, "flat")
	must(t, os.WriteFile(base, bytes.Repeat([]byte{1}, 8*vmm.PageSize), 0o600))
	must(t, os.Truncate(base, 1<<20))
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, vmm.PageSize) }
	ranges, err := flatten(t.Context(), base, flat, patchList{{0, page(2)}, {vmm.PageSize, page(3)}, {0, page(4)}, {512 << 10, page(5)}})
	must(t, err)
	if want := (rangeSet{{Offset: 0, Length: 2 * vmm.PageSize}, {Offset: 512 << 10, Length: vmm.PageSize}}); !slices.Equal(ranges, want) {
		t.Errorf("%v", ranges)
	}
	got, err := os.ReadFile(flat)
	must(t, err)
	if len(got) != 1<<20 || got[0] != 4 || got[vmm.PageSize] != 3 || got[2*vmm.PageSize] != 1 || got[512<<10] != 5 || got[1<<20-1] != 0 {
		t.Error("what was put together is wrong")
	}
	for name, bad := range map[string]patchRun{"outside": {1 << 20, page(1)}, "not a page": {0, page(1)[1:]}, "before": {-vmm.PageSize, page(1)}} {
		if _, err := flatten(t.Context(), base, flat+name, patchList{bad}); spore.CodeOf(err) != spore.CodeDamaged {
			t.Errorf("%s: %v", name, err)
		}
	}
}
