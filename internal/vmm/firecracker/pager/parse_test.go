package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sporevm/spore"
)

func TestHandshake(t *testing.T) {
	const size = 8 << 20
	good := []struct {
		name, text string
		want       []region
	}{
		{"one", `[{"base_host_virt_addr":4194304,"size":8388608,"offset":0,"page_size":4096,"page_size_kib":4096}]`,
			[]region{{addr: 4 << 20, size: size, page: 4096}}},
		{"two, out of order", `[{"base_host_virt_addr":4194304,"size":4194304,"offset":4194304,"page_size":4096},{"base_host_virt_addr":16777216,"size":4194304,"offset":0,"page_size":2097152}]`,
			[]region{{addr: 4 << 20, size: 4 << 20, off: 4 << 20, page: 4096}, {addr: 16 << 20, size: 4 << 20, page: hugePage}}},
		{"the older name, in bytes", `[{"base_host_virt_addr":4194304,"size":8388608,"offset":0,"page_size_kib":4096}]`,
			[]region{{addr: 4 << 20, size: size, page: 4096}}},
		{"the older name, in KiB", `[{"base_host_virt_addr":4194304,"size":8388608,"offset":0,"page_size_kib":2048}]`,
			[]region{{addr: 4 << 20, size: size, page: hugePage}}},
		{"a field of the future", `[{"base_host_virt_addr":4194304,"size":8388608,"offset":0,"page_size":4096,"colour":"red"}]`,
			[]region{{addr: 4 << 20, size: size, page: 4096}}},
	}
	for _, c := range good {
		got, err := parseHandshake([]byte(c.text), size)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v %v", c.name, got, err)
		}
	}
	one := func(addr, size, off, page string) string {
		return `{"base_host_virt_addr":` + addr + `,"size":` + size + `,"offset":` + off + `,"page_size":` + page + `}`
	}
	for name, text := range map[string]string{
		"not JSON":       "hello",
		"no list":        one("4096", "8388608", "0", "4096"),
		"none":           "[]",
		"null":           "null",
		"page size":      "[" + one("4096", "8388608", "0", "8192") + "]",
		"no page size":   `[{"base_host_virt_addr":4096,"size":8388608,"offset":0}]`,
		"negative":       "[" + one("4096", "-1", "0", "4096") + "]",
		"no size":        "[" + one("4096", "0", "0", "4096") + "]",
		"too big":        "[" + one("4096", "8392704", "0", "4096") + "]",
		"enormous":       "[" + one("4096", "18446744073709547520", "4096", "4096") + "]",
		"too small":      "[" + one("4096", "4096", "0", "4096") + "]",
		"odd size":       "[" + one("4096", "8388607", "0", "4096") + "]",
		"odd address":    "[" + one("4097", "8388608", "0", "4096") + "]",
		"address 0":      "[" + one("0", "8388608", "0", "4096") + "]",
		"address wraps":  "[" + one("18446744073709547520", "8388608", "0", "4096") + "]",
		"kernel address": "[" + one("140737488351232", "8388608", "0", "4096") + "]",
		"odd offset":     "[" + one("4096", "4096", "1", "4096") + "]",
		"not huge":       "[" + one("4096", "8388608", "0", "2097152") + "]",
		"the same twice": "[" + one("4194304", "4194304", "0", "4096") + "," + one("16777216", "4194304", "0", "4096") + "]",
		"a gap":          "[" + one("4194304", "4096", "0", "4096") + "," + one("16777216", "4194304", "4194304", "4096") + "]",
		"one address":    "[" + one("4194304", "4194304", "0", "4096") + "," + one("6291456", "4194304", "4194304", "4096") + "]",
		"many":           "[" + strings.Repeat(one("4096", "4096", "0", "4096")+",", maxRegions) + one("4096", "4096", "0", "4096") + "]",
	} {
		if got, err := parseHandshake([]byte(text), size); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":4194304,"size":8388608,"offset":0,"page_size":4096,"page_size_kib":4096}]`), int64(8<<20))
	f.Add([]byte(`[{"base_host_virt_addr":4194304,"size":4194304,"offset":4194304,"page_size":4096},{"base_host_virt_addr":16777216,"size":4194304,"offset":0,"page_size":2097152}]`), int64(8<<20))
	f.Add([]byte(`[{}]`), int64(4096))
	f.Fuzz(func(t *testing.T, text []byte, size int64) {
		if size <= 0 || size > 1<<40 || size%4096 != 0 {
			return
		}
		regions, err := parseHandshake(text, size)
		if err != nil {
			return
		}
		// Every byte of memory has one address, and every address belongs to one byte.
		var all int64
		for i, r := range regions {
			all += int64(r.size)
			if r.size == 0 || r.addr+r.size < r.addr || r.off < 0 || r.off+int64(r.size) > size {
				t.Fatalf("%+v of %d", r, size)
			}
			if i > 0 && r.addr < regions[i-1].end() {
				t.Fatalf("%+v", regions)
			}
			for _, o := range regions[:i] {
				if r.off < o.off+int64(o.size) && o.off < r.off+int64(r.size) {
					t.Fatalf("%+v", regions)
				}
			}
		}
		if all != size {
			t.Fatalf("%d of %d", all, size)
		}
	})
}

func FuzzHotSet(f *testing.F) {
	f.Add((&HotSet{Size: 1 << 30, Windows: []int64{0, 1 << 20, window}}).append(nil))
	f.Add((&HotSet{Size: 4096}).append(nil))
	f.Add([]byte(hotMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHotSet(b)
		if err != nil {
			return
		}
		for _, off := range h.Windows {
			if off < 0 || off >= h.Size || off%window != 0 {
				t.Fatalf("window at %d of %d", off, h.Size)
			}
		}
		if !bytes.Equal(h.append(nil), b) {
			t.Fatal("reads back as another one")
		}
	})
}

// TestHotSetDamage flips each bit of a file.
func TestHotSetDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hot")
	want := &HotSet{Size: 1 << 30, Windows: []int64{0, 1 << 20, window}}
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadHotSet(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %v", got, err)
	}
	b := want.append(nil)
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadHotSet(path); spore.CodeOf(err) != spore.CodeDamaged {
			t.Errorf("bit %d: %v", i, err)
		}
	}
	if _, err := LoadHotSet(path + "-not"); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("none: %v", err)
	}
}

// runs are patches.
type runs []struct {
	off  int64
	data []byte
}

func (r runs) Each(_ context.Context, fn func(int64, []byte) error) error {
	for _, x := range r {
		if err := fn(x.off, x.data); err != nil {
			return err
		}
	}
	return nil
}

func makeSpool(t testing.TB, size int64, r runs) []byte {
	t.Helper()
	f, err := newSpool(t.Context(), t.TempDir(), size, r)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSpoolDamage flips bytes all over a spool: it is refused, or else the page that the byte is in.
func TestSpoolDamage(t *testing.T) {
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	r := runs{{0, page(1)}, {8192, append(page(2), page(0)...)}, {8192, page(3)}}
	b := makeSpool(t, 65536, r)
	read := func(b []byte) error {
		index, err := parseSpool(bytes.NewReader(b), int64(len(b)), 65536)
		if err != nil {
			return err
		}
		s := &spool{f: bytes.NewReader(b), name: "it", index: index}
		buf := make([]byte, 65536)
		for off := int64(0); off < 65536; {
			n, _, _, err := s.run(off, buf)
			if err != nil {
				return err
			}
			off += min(n, 65536-off)
		}
		return nil
	}
	if err := read(b); err != nil {
		t.Fatal(err)
	}
	unused := 0
	for i := range b {
		if i > 16 && i < len(b)-200 && i%97 != 0 {
			continue
		}
		bad := bytes.Clone(b)
		bad[i] ^= 0x20
		if read(bad) == nil {
			unused++
			if i < 4096 || i >= 8192 { // the page that a later patch lies over is nobody's
				t.Errorf("byte %d flipped: nothing is found", i)
			}
		}
	}
	if unused == 0 {
		t.Error("no byte is without use, though one page is")
	}
	if _, err := parseSpool(bytes.NewReader(b), int64(len(b)), 131072); err == nil {
		t.Error("a spool over another memory is taken")
	}
}

func FuzzSpool(f *testing.F) {
	f.Add(makeSpool(f, 65536, runs{{0, bytes.Repeat([]byte{1}, 8192)}, {4096, make([]byte, 4096)}}))
	f.Add([]byte(spoolMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		index, err := parseSpool(bytes.NewReader(b), int64(len(b)), 65536)
		if err != nil {
			return
		}
		s := &spool{f: bytes.NewReader(b), name: "it", index: index}
		buf := make([]byte, 8192)
		for off := int64(0); off < 65536; off += 4096 {
			if n, _, ok, err := s.run(off, buf); err == nil && (n <= 0 || n%4096 != 0) {
				t.Fatalf("%d bytes, %v, at %d", n, ok, off)
			}
		}
	})
}

func FuzzEvent(f *testing.F) {
	b := make([]byte, messageSize)
	b[0] = eventFault
	f.Add(bytes.Clone(b))
	b[0] = eventRemove
	binary.NativeEndian.PutUint64(b[8:], 4096)
	binary.NativeEndian.PutUint64(b[16:], 8192)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := parseEvent(b); err == nil && e.remove && e.end < e.start {
			t.Fatalf("%+v", e)
		}
	})
}

// FuzzMessage reads lines as both sides do; what is taken as a setup can be worked with.
func FuzzMessage(f *testing.F) {
	set := setup{ID: "s1", Size: 4096, Base: "base", Kind: kindSpool, Names: []string{"spool"}, Connect: 1}
	for _, v := range []any{order{Op: opStart, Setup: &set}, order{Op: opStats, Seq: 7}, report{Kind: reportStats, Stats: &Stats{}}, report{Kind: reportState, State: stateFailed, Failure: &failure{Code: "damaged", Message: "m"}}} {
		line, err := encodeLine(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := newLines(bytes.NewReader(b))
		var o order
		if in.next(&o) == nil && o.Setup != nil && o.Setup.check() == nil && (o.Setup.Size <= 0 || len(o.Setup.Names) > maxLayers) {
			t.Fatalf("%+v", o.Setup)
		}
		var r report
		if newLines(bytes.NewReader(b)).next(&r) == nil && r.Failure != nil && r.Failure.err() == nil {
			t.Fatalf("%+v", r)
		}
	})
}

func TestFailureTravels(t *testing.T) {
	want := Damaged("piece mly-1", os.ErrInvalid)
	b, err := json.Marshal(newFailure(want))
	if err != nil {
		t.Fatal(err)
	}
	var f failure
	if err := decodeStrict(b, &f); err != nil {
		t.Fatal(err)
	}
	got := spore.AsError(f.err())
	if got.Code != spore.CodeDamaged || !strings.Contains(got.Message, "mly-1") || got.Hint == "" {
		t.Errorf("%+v", got)
	}
	// What is inside is for the log.
	if got := newFailure(os.ErrInvalid).err(); spore.CodeOf(got) != spore.CodeInternal || strings.Contains(got.Error(), "invalid") {
		t.Errorf("%v", got)
	}
}
