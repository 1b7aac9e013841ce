package frozen

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sporevm/spore/internal/vmm"
)

const testCapture = "00112233445566778899aabbccddeeff"

// layerFile builds a layer over pages pages; content maps a page to its fill, 0 for a zero page.
func layerFile(t testing.TB, pages int64, content map[int64]byte) []byte {
	t.Helper()
	f := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "layer")))
	defer f.Close()
	lw := must[*layerWriter](t)(newLayerWriter(f, MemoryLayer, testCapture, pages*pageSize))
	for p := range pages {
		c, ok := content[p]
		var err error
		switch {
		case ok && c == 0:
			err = lw.addZeros(p*pageSize, pageSize)
		case ok && c == 255: // what does not pack
			err = lw.add(p*pageSize, []byte(randomHex(pageSize/2)))
		case ok:
			err = lw.add(p*pageSize, bytes.Repeat([]byte{c}, pageSize))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, size, err := lw.finish(); err != nil {
		t.Fatal(err)
	} else if is := must[os.FileInfo](t)(f.Stat()).Size(); is != size {
		t.Fatalf("says it has %d bytes, has %d", size, is)
	}
	return must[[]byte](t)(os.ReadFile(f.Name()))
}

func parseBytes(b []byte) (*layer, error) { return parseLayer(bytes.NewReader(b), int64(len(b))) }

// FuzzLayer feeds the parser of layers; what it accepts must hold together and be readable without a panic.
func FuzzLayer(f *testing.F) {
	f.Add(layerFile(f, 4, nil))
	f.Add(layerFile(f, 200, map[int64]byte{0: 1, 1: 1, 3: 0, 4: 0, 9: 255, 199: 8}))
	f.Add([]byte(layerMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, reseal(b)} {
			l, err := parseBytes(b)
			if err != nil {
				continue
			}
			last := int64(0)
			for _, r := range l.runs {
				if r.offset < last || r.length <= 0 || r.end() > l.size {
					t.Fatalf("accepted run %+v after %d in %d", r, last, l.size)
				}
				last = r.end()
			}
			if l.readAll() != nil || l.size > 1<<30 {
				continue
			}
			v := newView(l.size, bytes.NewReader(nil), []*layer{l}, []string{"mly-x"})
			var sum int64
			err = v.Each(context.Background(), func(off int64, data []byte) error {
				if sum += int64(len(data)); sum > 1<<22 {
					return context.Canceled
				}
				return nil
			})
			if err != nil && err != context.Canceled {
				t.Fatal(err)
			}
		}
	})
}

// reseal corrects the checksums of a layer that was made up, so that fuzzing gets past them.
func reseal(b []byte) []byte {
	if len(b) < headerSize+footerSize {
		return nil
	}
	b = bytes.Clone(b)
	foot := b[len(b)-footerSize:]
	place := int(binary.LittleEndian.Uint64(foot[16:]))
	if place >= 0 && place <= len(b)-footerSize {
		binary.LittleEndian.PutUint64(foot[24:], xxhash.Sum64(b[place:len(b)-footerSize]))
	}
	for _, part := range [][]byte{b[:headerSize], foot} {
		copy(part[60:], appendCRC(bytes.Clone(part[:60]))[60:])
	}
	return b
}

func FuzzManifest(f *testing.F) {
	s := openStore(f, Options{})
	template(f, s, "tpl-1", 64)
	f.Add(must[[]byte](f)(os.ReadFile(s.path(dirManifests, "tpl-1"))))
	f.Add([]byte("spore manifest 1 00\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, body, _ := bytes.Cut(b, []byte{'\n'})
		sealed := append([]byte("spore manifest 1 "+sealSum(whatManifest, 1, body)+"\n"), body...)
		for _, b := range [][]byte{b, sealed} {
			m, err := parseManifest(b)
			if err != nil {
				continue
			}
			again, err := seal(whatManifest, Format, m)
			if err != nil {
				t.Fatal(err)
			}
			twice, err := parseManifest(again)
			if err != nil {
				t.Fatalf("what was written is not read: %v", err)
			}
			if diff := cmp.Diff(m.Pieces(), twice.Pieces()); diff != "" {
				t.Fatal(diff)
			}
			for _, id := range m.PieceIDs() {
				if !pieceForm.MatchString(id) {
					t.Fatalf("accepted piece id %q", id)
				}
			}
		}
	})
}

func FuzzState(f *testing.F) {
	file, _, err := sealState(testCapture, []byte("device state"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Fuzz(func(t *testing.T, b []byte) {
		capture, state, err := parseState(b)
		if err != nil {
			return
		}
		if raw, err := hex.DecodeString(capture); err != nil || len(raw) != 16 || len(state) != len(b)-stateHeader {
			t.Fatalf("accepted capture %q with %d bytes", capture, len(state))
		}
	})
}

// FuzzDocuments feeds the small documents that lie beside pieces and in the directories of leases and pins.
func FuzzDocuments(f *testing.F) {
	s := openStore(f, Options{})
	m := template(f, s, "tpl-1", 64)
	if err := s.Pin("s1", m); err != nil {
		f.Fatal(err)
	}
	f.Add(must[[]byte](f)(os.ReadFile(s.path(dirPins, "s1"))))
	f.Add(must[[]byte](f)(os.ReadFile(s.path(dirPieces, m.State.ID, fileStamp))))
	f.Add(must[[]byte](f)(os.ReadFile(s.dataPath(m.Memory.Base.ID) + ".seen")))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, body, _ := bytes.Cut(b, []byte{'\n'})
		for _, what := range []string{whatPin, whatStamp, whatSeen, whatLease} {
			doc := append([]byte("spore "+what+" 1 "+sealSum(what, 1, body)+"\n"), body...)
			for _, b := range [][]byte{b, doc} {
				if m, err := parsePin("s1", b); err == nil && m.validate() != nil {
					t.Fatal("accepted a pin of a manifest that does not hold together")
				}
				if st, err := parseStamp(b); err == nil && !pieceForm.MatchString(st.ID) {
					t.Fatalf("accepted stamp %+v", st)
				}
				var seen sighting
				var held leaseDoc
				_ = unseal(whatSeen, 1, b, &seen)
				_ = unseal(whatLease, 1, b, &held)
			}
		}
	})
}

// TestLayerEachByte flips each byte of a layer: either it is not opened, or a frame is not read.
func TestLayerEachByte(t *testing.T) {
	good := layerFile(t, 100, map[int64]byte{1: 1, 2: 2, 4: 0, 50: 255})
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		l, err := parseBytes(bad)
		if err == nil {
			err = l.readAll()
		}
		if err == nil {
			t.Errorf("byte %d of %d flipped: accepted", i, len(good))
		}
	}
	for n := range len(good) {
		if _, err := parseBytes(good[:n]); err == nil {
			t.Errorf("cut at %d of %d: accepted", n, len(good))
		}
	}
}

// TestView compares layers in any order with a model, however reads are cut.
func TestView(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const pages = 300
		want := make([]byte, pages*pageSize)
		base := bytes.Repeat([]byte{7}, pages*pageSize/2) // the file is shorter than the memory
		copy(want, base)
		var layers []*layer
		var names []string
		for range rapid.IntRange(0, 4).Draw(rt, "layers") {
			content := map[int64]byte{}
			for range rapid.IntRange(0, 5).Draw(rt, "runs") {
				start, fill := rapid.Int64Range(0, pages-1).Draw(rt, "start"), rapid.Byte().Draw(rt, "fill")%5
				for p := start; p < min(pages, start+rapid.Int64Range(1, 120).Draw(rt, "length")); p++ {
					content[p] = fill
				}
			}
			for p, c := range content {
				copy(want[p*pageSize:], bytes.Repeat([]byte{c}, pageSize))
			}
			layers = append(layers, must[*layer](t)(parseBytes(layerFile(t, pages, content))))
			names = append(names, "mly-x")
		}
		v := newView(pages*pageSize, bytes.NewReader(base), layers, names)
		for range 5 {
			off := rapid.Int64Range(0, pages*pageSize-1).Draw(rt, "offset")
			got := make([]byte, rapid.Int64Range(1, pages*pageSize-off).Draw(rt, "bytes"))
			if err := readFull(v, got, off); err != nil {
				rt.Fatal(err)
			}
			if i := firstDifference(got, want[off:off+int64(len(got))]); i >= 0 {
				rt.Fatalf("differs at %d", off+int64(i))
			}
		}
		patched := make([]byte, pages*pageSize)
		copy(patched, base)
		err := v.Each(context.Background(), func(off int64, data []byte) error {
			copy(patched[off:], data)
			return nil
		})
		if err != nil || !bytes.Equal(patched, want) {
			rt.Fatalf("patches give something else (%v)", err)
		}
	})
}

// TestRanges compares the set operations with sets.
func TestRanges(t *testing.T) {
	draw := func(rt *rapid.T, name string) ([]vmm.Range, map[int64]bool) {
		set := map[int64]bool{}
		var list []vmm.Range
		at := int64(0)
		for range rapid.IntRange(0, 6).Draw(rt, name) {
			at += rapid.Int64Range(0, 4).Draw(rt, "gap")
			n := rapid.Int64Range(1, 5).Draw(rt, "length")
			list = append(list, rangeOf(at, n))
			for i := range n {
				set[at+i] = true
			}
			at += n
		}
		return list, set
	}
	pagesOf := func(list []vmm.Range) map[int64]bool {
		set := map[int64]bool{}
		for _, r := range list {
			for p := r.Offset; p < r.End(); p += pageSize {
				set[p/pageSize] = true
			}
		}
		return set
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, as := draw(rt, "a")
		b, bs := draw(rt, "b")
		both, less, either := map[int64]bool{}, map[int64]bool{}, map[int64]bool{}
		for p := range as {
			either[p] = true
			if bs[p] {
				both[p] = true
			} else {
				less[p] = true
			}
		}
		for p := range bs {
			either[p] = true
		}
		for _, c := range []struct {
			name string
			got  []vmm.Range
			want map[int64]bool
		}{
			{"intersect", intersect(a, b), both}, {"subtract", subtract(a, b), less}, {"union", union(a, b), either},
			{"split", split(a, 2*pageSize), as},
		} {
			if !checkRanges(c.got, 1<<40) {
				rt.Fatalf("%s: %v is out of order", c.name, c.got)
			}
			if diff := cmp.Diff(c.want, pagesOf(c.got)); diff != "" {
				rt.Fatalf("%s: %s", c.name, diff)
			}
		}
	})
}

func TestMark(t *testing.T) {
	roots := []Root{{ID: "a", Pieces: []string{"1", "2", "1"}}, {ID: "b", Pieces: []string{"2"}}, {ID: "c"}}
	got := Mark(roots, map[string][]string{"2": {"3"}, "3": {"2", "4"}, "9": {"8"}})
	names := map[string]string{}
	for node, by := range got {
		for _, r := range by {
			names[node] += r.ID
		}
	}
	want := map[string]string{"1": "a", "2": "ab", "3": "ab", "4": "ab"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}
