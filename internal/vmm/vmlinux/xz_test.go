package vmlinux

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// filtered is made by "xz --check=crc32 --x86 --lzma2=dict=1MiB", as kernels are, of 3459 bytes full of calls and jumps,
// with things among them that only look like it.
const (
	filteredSize = 3459
	filteredSum  = "a66ffb53dc37107e72ffc478dc39af759dfaa3e76383cf03a98a4834dd0460a8"
	filtered     = `
/Td6WFoAAAFpIt42AgEEACEBEACLIW9J4A2CAy9dAD+RRYRoPYmm2tTRAAApVpjhWcbXIOnh5qHD677x7eW/aJ/FvBQYHGqFgqb1k3XpsnCSNg/dHPqeun
Vrvwmm8LcUcOkHwBvqM9W9zwtBOuJglW55M8zLPjt9aRCNFDYECsiOKW+w1yPsNSJHGMbsywR3m3csTwpRdpKobgL2Z8X4SPgqlMkD9/HSR10THwJ9m7uQ
EkepjRuRgyJzxh0D45+INZCZQo/E6koJYf/n2J4nJLwF4+i6Xgp/mtZmut5eaMHceuHO3aEFOjU9qKGF5HiEZ8+Ra4kZzm3nMBThVicMVbvDf/1PCR5eGG
LVxniyHMLdlKecpI6nEq01EqGp73iuaGaZtk5bGDSRR1jpGkkwaOAQYUkA1gFfeAC1nQ0ST8Q0cG0CGXFGUZaoebjkBSuZbEiZUruL4lVlXSIWzpQvqp36
JmwuKdzY1a1vU1gBgxIFwjYZs9VHbXNXcr2UrTiXnCfb2Zwgo12RUf47fC+CPbmXlbv94aQVI1Q3+4W8PLVfElOUZqRspUKDN1BT0bKUgtFOmT28O1HKM8
lris+1xQgE+t3wE1Uo04LtRyPT8WFEMBh3CbLTuLOsBH+Byt50DsTvkfMzVQWswUCqCQg54G04HxPJHYPaUXE76PuQfHfVEx+0kb8vQvx74xuFJAGG9Mw8
qjdxJeaIuUbuNUdeKrYkynmVk+wTXEk7/2eoo0hLW3qqso9hzcqasacxPTeW5S0KNTmBPTfuOOri628/qW4OHmgQGqqZCMjtQEsLu0nACPh9tYEKaXkl6/
tFaHMeOhrg7ZhlKISpIlvU0RO0bwhGuqbFD/UjxUChHN/lYTgovdjocgoyHfJ1p0RwYYOcQgS1zUoOahGIaLPo/xqDLTumXNS4Gc0gEXyeimuTqPgTa0lO
SPKStb34DMtVsBmCEyZ58XQqguzlSU+4HaSb3AX2aEHkwj8OyLIVR1ZLp6rRIWuiuiHSjVdfbUEdJOTQ44k8eEX23BRfUKKEDxf7ZUzn6TlutmSvwFwJ3m
JgQgg2X5F7gagijrzylAOWRINXPLX0yQPZUir1zuv1SYHxf4hJSV1dwDkKJxTP4jZgAADjR6nGAAHHBoMbAAA1WmevPjANiwIAAAAAAVla
`
)

func filteredXZ(t testing.TB) []byte {
	packed, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(filtered, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func TestXZFilter(t *testing.T) {
	for name, slow := range map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
	} {
		r, err := openXZ(bytes.NewReader(filteredXZ(t)))
		if err != nil {
			t.Fatal(err)
		}
		x := r.(*x86Reader)
		x.r = slow(x.r)
		plain, err := io.ReadAll(x)
		if sum := fmt.Sprintf("%x", sha256.Sum256(plain)); err != nil || len(plain) != filteredSize || sum != filteredSum {
			t.Errorf("%s: %d bytes, %s, %v", name, len(plain), sum, err)
		}
	}
}

func FuzzOpenXZ(f *testing.F) {
	f.Add(filteredXZ(f))
	f.Fuzz(func(t *testing.T, packed []byte) {
		r, err := openXZ(bytes.NewReader(packed))
		if err != nil {
			return
		}
		io.Copy(io.Discard, io.LimitReader(r, 1<<20)) // only that it ends
	})
}
