package procmem

import (
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMaps(t *testing.T) {
	text := "7f0000000000-7f0000010000 rw-p 00002000 fe:01 1234                       /data/vms/a b/memory (deleted)\n" +
		"7f0000010000-7f0000011000 r-xs 00000000 00:00 0 \n" +
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
	got, err := ParseMaps([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mapping{
		{Start: 0x7f0000000000, End: 0x7f0000010000, Private: true, Writable: true, Offset: 0x2000, Major: 0xfe, Minor: 1, Inode: 1234, Path: "/data/vms/a b/memory"},
		{Start: 0x7f0000010000, End: 0x7f0000011000},
		{Start: 0xffffffffff600000, End: 0xffffffffff601000, Private: true, Path: "[vsyscall]"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	for _, bad := range []string{"", "x\n", "1000-2000 rw-p 0 0:0\n", "2000-1000 rw-p 0 0:0 0 \n", "1000-2001 rw-p 0 0:0 0 \n", "1000-2000 rw-p ffffffffffffffff 0:0 0 \n"} {
		if got, err := ParseMaps([]byte(bad)); err == nil && len(got) > 0 {
			t.Errorf("%q was accepted: %+v", bad, got)
		}
	}
}

func TestLocate(t *testing.T) {
	file := fileID{path: "/m", inode: 7, major: 1, minor: 2}
	mp := func(start, end uint64, off int64, ino uint64, private bool) Mapping {
		return Mapping{Start: start, End: end, Offset: off, Inode: ino, Major: 1, Minor: 2, Private: private}
	}
	for _, tc := range []struct {
		name string
		in   []Mapping
		want []segment
	}{
		{"one", []Mapping{mp(0x10000, 0x14000, 0, 7, true)}, []segment{{0, 0x4000, 0x10000}}},
		{"longer than RAM", []Mapping{mp(0x10000, 0x20000, 0, 7, true)}, []segment{{0, 0x4000, 0x10000}}},
		{"split", []Mapping{mp(0x10000, 0x12000, 0, 7, true), mp(0x12000, 0x14000, 0x2000, 7, true)}, []segment{{0, 0x4000, 0x10000}}},
		{"scattered", []Mapping{mp(0x10000, 0x12000, 0x2000, 7, true), mp(0x50000, 0x52000, 0, 7, true), mp(1, 2, 0, 8, true)}, []segment{{0, 0x2000, 0x50000}, {0x2000, 0x2000, 0x10000}}},
		{"gap", []Mapping{mp(0x10000, 0x11000, 0, 7, true), mp(0x12000, 0x14000, 0x2000, 7, true)}, nil},
		{"late start", []Mapping{mp(0x10000, 0x14000, 0x1000, 7, true)}, nil},
		{"twice", []Mapping{mp(0x10000, 0x14000, 0, 7, true), mp(0x20000, 0x24000, 0, 7, true)}, nil},
		{"short", []Mapping{mp(0x10000, 0x13000, 0, 7, true)}, nil},
		{"mixed", []Mapping{mp(0x10000, 0x12000, 0, 7, true), mp(0x12000, 0x14000, 0x2000, 7, false)}, nil},
		{"another file", []Mapping{mp(0x10000, 0x14000, 0, 8, true)}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _, err := locate(tc.in, file, 0x4000)
			if (err != nil) != (tc.want == nil) {
				t.Fatal(err)
			}
			if tc.want != nil {
				if fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Fatalf("got %v, want %v", got, tc.want)
				}
			}
		})
	}
}

func FuzzParseMaps(f *testing.F) {
	self, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	f.Add([]byte("1000-2000 rw-p 00000000 00:00 0 \n"))
	f.Add([]byte("ffffffffffffe000-fffffffffffff000 rw-p 7ffffffffffff000 00:00 1 x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := ParseMaps(text)
		if err != nil {
			return
		}
		for _, mp := range all {
			if mp.Start >= mp.End || mp.Offset < 0 || mp.Offset+int64(mp.End-mp.Start) < 0 {
				t.Fatalf("%+v", mp)
			}
		}
		segments, _, err := locate(all, fileID{inode: 1}, 16*page)
		if err != nil {
			return
		}
		var next int64
		for _, s := range segments {
			if s.off != next || s.len <= 0 {
				t.Fatalf("%v", segments)
			}
			next = s.off + s.len
		}
		if next != 16*page {
			t.Fatalf("%v", segments)
		}
	})
}

func FuzzParseEntries(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x40, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var all, dirty runList
		parseEntries(b, 0, false, &all)
		parseEntries(b, 0, true, &dirty)
		if rest := subtract(dirty.runs, all.runs); len(rest) > 0 {
			t.Fatalf("dirty but not held: %v", rest)
		}
		end := int64(-1)
		for _, r := range all.runs {
			if r.Offset <= end || r.Length <= 0 || r.End() > int64(len(b)/8*page) {
				t.Fatalf("%v", all.runs)
			}
			end = r.End()
		}
	})
}
