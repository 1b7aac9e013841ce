package sim

import (
	"bytes"
	"testing"

	spore "github.com/sporevm/spore"
)

func FuzzReadState(f *testing.F) {
	var buf bytes.Buffer
	if err := writeState(&buf, "sim-1", "1 CPUs, 1 MiB", []byte("registers")); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte(stateMagic + "{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		devices, err := readState(bytes.NewReader(text), "sim-1", "1 CPUs, 1 MiB")
		if err == nil {
			if !bytes.HasSuffix(text, devices) {
				t.Fatal("the state holds what was not read")
			}
			return
		}
		switch spore.CodeOf(err) {
		case spore.CodeDamaged, spore.CodeStale, spore.CodeConflict:
		default:
			t.Fatal(err)
		}
	})
}
