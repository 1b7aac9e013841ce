package main

import (
	"bytes"
	"testing"
)

func releases(t testing.TB) (all []release) {
	for _, v := range []string{"1.10.1", "1.13.1", "1.14.1", "1.16.1", "1.17.0"} {
		r, err := parseRelease(v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestStateFile(t *testing.T) {
	for _, r := range releases(t) {
		text, err := encodeState(r, vmState{Machine: machineConfig{VCPUs: 2, MemoryMiB: 64, HugePages: "None"}})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := decodeState(r, text); err != nil || st.Machine.VCPUs != 2 {
			t.Errorf("%s: %+v, %v", r.version, st, err)
		}
		for i := range text {
			if _, err := decodeState(r, text[:i]); err == nil {
				t.Errorf("%s: a state of %d bytes was taken when it was cut to %d", r.version, len(text), i)
			}
			bad := bytes.Clone(text)
			bad[i] ^= 0x40
			if _, err := decodeState(r, bad); err == nil {
				t.Errorf("%s: a state was taken that was changed at %d", r.version, i)
			}
		}
	}
	for _, v := range []string{"", "1", "1.9.0", "1.18.0", "2.10.0", "1.x.0"} {
		if r, err := parseRelease(v); err == nil {
			t.Errorf("%q is %+v", v, r)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	all := releases(f)
	for _, r := range all {
		text, err := encodeState(r, vmState{Machine: machineConfig{VCPUs: 1, MemoryMiB: 1}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, r := range all {
			if st, err := decodeState(r, text); err == nil && (st.Machine.VCPUs < 1 || st.Machine.MemoryMiB < 1) {
				t.Errorf("%s: a machine of %+v", r.version, st.Machine)
			}
		}
	})
}
