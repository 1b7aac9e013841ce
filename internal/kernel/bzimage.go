package kernel

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/sporevm/spore"
)

// Offsets in the setup header of a bzImage, from the x86 boot protocol.
const (
	offBootFlag      = 0x1fe // 0xaa55
	offHeader        = 0x202 // "HdrS"
	offProtocol      = 0x206
	offKernelVersion = 0x20e // of the version string, less 0x200
	offLoadFlags     = 0x211
	offXLoadFlags    = 0x236 // since protocol 2.12
	endOfHeader      = 0x268

	loadedHigh     = 1 << 0
	xlfKernel64    = 1 << 0
	maxReleaseSize = 128
)

// kernelRelease reads the release string ("6.1.0-56-cloud-amd64") of an x86-64 bzImage.
func kernelRelease(image []byte) (string, error) {
	refuse := func(what string) (string, error) {
		return "", spore.Invalidf("kernel", "%s", what).WithHint("give the vmlinuz (a bzImage for x86-64) of a Linux kernel package")
	}
	switch {
	case len(image) == 0:
		return refuse("the kernel file is empty")
	case bytes.HasPrefix(image, []byte("\x7fELF")):
		return refuse("the kernel is an ELF file, not a bzImage")
	case len(image) > 0x3c && string(image[0x38:0x3c]) == "ARM\x64":
		return refuse("the kernel is for arm64, not for x86-64")
	case len(image) > 0x38 && string(image[0x30:0x35]) == "RISCV":
		return refuse("the kernel is for riscv, not for x86-64")
	case len(image) < endOfHeader,
		binary.LittleEndian.Uint16(image[offBootFlag:]) != 0xaa55,
		string(image[offHeader:offHeader+4]) != "HdrS":
		return refuse("the kernel is not a bzImage")
	case binary.LittleEndian.Uint16(image[offProtocol:]) < 0x020c,
		image[offLoadFlags]&loadedHigh == 0:
		return refuse("the kernel is too old: it speaks a boot protocol before 2.12")
	case binary.LittleEndian.Uint16(image[offXLoadFlags:])&xlfKernel64 == 0:
		return refuse("the kernel is for 32-bit x86, not for x86-64")
	}
	at := int(binary.LittleEndian.Uint16(image[offKernelVersion:])) + 0x200
	if at == 0x200 || at >= len(image) {
		return refuse("the kernel does not say its version")
	}
	text, _, terminated := bytes.Cut(image[at:min(at+4*maxReleaseSize, len(image))], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if !terminated || !plausibleRelease(release) {
		return refuse("the kernel does not say its version in a readable form")
	}
	return release, nil
}

// plausibleRelease keeps what becomes a path element and a line in a table to the characters that releases are made of.
func plausibleRelease(s string) bool {
	if s == "" || len(s) > maxReleaseSize || s[0] < '0' || s[0] > '9' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte("._+~-", c) >= 0:
		default:
			return false
		}
	}
	return true
}
