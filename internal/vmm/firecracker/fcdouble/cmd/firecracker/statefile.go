package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"syscall"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// A state file is, as the real one, a magic number and the format's version, what the devices and CPUs were, and a CRC-64 of it
// all. What stands between is our own.
const (
	stateMagic = 0x0710_1984_8664_0000
	stateLimit = 10_000_000
)

// vmState is what a state file holds.
type vmState struct {
	Machine   machineConfig  `json:"machine"`
	Boot      bootSource     `json:"boot_source"`
	Drives    []*drive       `json:"drives"`
	Nets      []netConfig    `json:"nets"`
	Vsock     *vsockConfig   `json:"vsock"`
	Entropy   *entropyConfig `json:"entropy"`
	Balloon   *balloonConfig `json:"balloon"`
	PCI       bool           `json:"pci"`
	Registers []byte         `json:"registers"`
}

var crcTable = crc64.MakeTable(crc64.ECMA)

func encodeState(rel release, st vmState) ([]byte, error) {
	body, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint64(nil, stateMagic)
	b = append(append(append(b, byte(len(rel.format))), rel.format...), body...)
	return binary.LittleEndian.AppendUint64(b, crc64.Checksum(b, crcTable)), nil
}

// loadError is why a state file cannot be used, worded as the real one does.
type loadError string

func (e loadError) Error() string { return string(e) }

func undecodable(rel release) error {
	switch {
	case rel.since(16):
		return loadError("An error occurred during bitcode serialization: bitcode error")
	case rel.since(15):
		return loadError("An error occured during bitcode serialization: bitcode error")
	case rel.since(14):
		return loadError("An error occured during bincode decoding: UnexpectedEnd { additional: 1 }")
	}
	return loadError("An error occured with serialization/deserialization: io error: unexpected end of file")
}

// header takes the version from a state file's beginning.
func header(rel release, text []byte) (format string, rest []byte, err error) {
	if len(text) < 9 || len(text) < 9+int(text[8]) {
		return "", nil, undecodable(rel)
	}
	if magic := binary.LittleEndian.Uint64(text); magic != stateMagic {
		if rel.bitcode() {
			return "", nil, undecodable(rel)
		}
		return "", nil, loadError(fmt.Sprintf("Magic value does not match arch: %d", magic))
	}
	end := 9 + int(text[8])
	return string(text[9:end]), text[end:], nil
}

func decodeState(rel release, text []byte) (vmState, error) {
	var st vmState
	if len(text) > stateLimit && rel.bitcode() {
		return st, loadError(fmt.Sprintf("Snapshot size exceeds limit of %d bytes", stateLimit))
	}
	if len(text) < 8 {
		if !rel.since(14) {
			return st, loadError("Snapshot file is smaller than CRC length.")
		}
		return st, loadError("IO Error: File too short to contain CRC")
	}
	body := text[:len(text)-8]
	sum := crc64.Checksum(body, crcTable)
	sound := sum == binary.LittleEndian.Uint64(text[len(body):])
	if !rel.since(14) && !sound { // the sum was looked at first
		return st, loadError(fmt.Sprintf("CRC64 validation failed: %d", sum))
	}
	format, rest, err := header(rel, body)
	if err != nil {
		return st, err
	}
	if format != rel.format {
		if rel.headerFirst() && !rel.foreign(format) {
			return st, loadError("Invalid data version: " + format)
		}
		return st, undecodable(rel)
	}
	// A file that was cut short ends within its data.
	if err := json.Unmarshal(rest, &st); err != nil {
		var syntax *json.SyntaxError
		if sound || errors.As(err, &syntax) && syntax.Offset >= int64(len(rest)) {
			return st, undecodable(rel)
		}
	}
	if !sound {
		return st, loadError("CRC64 validation failed")
	}
	if st.Machine.VCPUs < 1 || st.Machine.MemoryMiB < 1 {
		return st, undecodable(rel)
	}
	return st, nil
}

func readState(rel release, path string) (vmState, error) {
	f, err := os.Open(path)
	if err != nil {
		return vmState{}, say("Failed to open snapshot file: %s", rust.Message(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, stateLimit+1))
	if err != nil {
		return vmState{}, say("Failed to load snapshot state from file: IO Error: %s", rust.Message(err))
	}
	st, err := decodeState(rel, text)
	if err != nil {
		return vmState{}, say("Failed to load snapshot state from file: %w", err)
	}
	return st, nil
}

// describeSnapshot is what --describe-snapshot prints.
func describeSnapshot(rel release, path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", say("Unable to open snapshot state file: %w", err)
	}
	const why = "Invalid data format version of snapshot file: %w"
	if rel.since(14) && len(text) < 8 {
		return "", say(why, loadError("IO Error: File too short to contain CRC"))
	}
	body := text[:max(len(text)-8, 0)]
	format, rest, err := header(rel, body)
	if err != nil {
		return "", say(why, err)
	}
	if rel.foreign(format) {
		return "", say(why, undecodable(rel))
	}
	if rel.bitcode() {
		// The whole file is decoded for it; its sum is not looked at.
		var st vmState
		err := json.Unmarshal(rest, &st)
		var syntax *json.SyntaxError
		if format != rel.format || errors.As(err, &syntax) && syntax.Offset >= int64(len(rest)) {
			return "", say(why, undecodable(rel))
		}
	}
	return "v" + format, nil
}

func errno(err error) (no syscall.Errno, ok bool) { ok = errors.As(err, &no); return no, ok }
