package frozen

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// A device state file is a header of 64 bytes and then what the engine wrote:
//
//	0  magic "SPORESTA"   8  version, 4 bytes   12  zeros, 4   16  capture, 16   32  bytes that follow, 8   40  zeros
//	60  CRC-32C of the 60 bytes before
//
// Its digest is the SHA-256 of the whole file.
const (
	stateMagic   = "SPORESTA"
	stateVersion = 1
	stateHeader  = 64
	// maxState bounds what is read into memory; real states are 80 KB to a few MB.
	maxState = 256 << 20
)

func sealState(capture string, state []byte) (file []byte, digest string, err error) {
	id, err := captureBytes(capture)
	if err != nil {
		return nil, "", err
	}
	h := append(make([]byte, 0, stateHeader+len(state)), stateMagic...)
	h = binary.LittleEndian.AppendUint32(h, stateVersion)
	h = append(h, 0, 0, 0, 0)
	h = append(h, id...)
	h = binary.LittleEndian.AppendUint64(h, uint64(len(state)))
	h = appendCRC(append(h, make([]byte, stateHeader-4-len(h))...))
	h = append(h, state...)
	return h, bytesDigest(h), nil
}

// parseState checks a device state file and returns the capture it belongs to.
func parseState(file []byte) (capture string, state []byte, err error) {
	if len(file) < stateHeader {
		return "", nil, errors.New("too short for a device state")
	}
	h := file[:stateHeader]
	switch {
	case string(h[:8]) != stateMagic:
		return "", nil, errors.New("header: not a device state")
	case !crcOK(h):
		return "", nil, errors.New("header: checksum does not match")
	case binary.LittleEndian.Uint32(h[8:]) > stateVersion:
		return "", nil, errNewer
	case binary.LittleEndian.Uint32(h[8:]) != stateVersion:
		return "", nil, errors.New("header: no such version")
	case binary.LittleEndian.Uint64(h[32:]) != uint64(len(file)-stateHeader):
		return "", nil, errors.New("header: length does not match")
	}
	return hex.EncodeToString(h[16:32]), file[stateHeader:], nil
}

// readState reads a device state file in full and leaves f at the start of what the engine wrote.
func readState(f *os.File) (capture, digest string, err error) {
	st, err := f.Stat()
	if err != nil {
		return "", "", err
	}
	if st.Size() > maxState {
		return "", "", fmt.Errorf("%d bytes is too long for a device state", st.Size())
	}
	file := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), file); err != nil {
		return "", "", err
	}
	capture, _, err = parseState(file)
	if err != nil {
		return "", "", err
	}
	_, err = f.Seek(stateHeader, io.SeekStart)
	return capture, bytesDigest(file), err
}
