package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
)

// message is any line that QEMU sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID string `json:"id"`
}

type kind int

const (
	kindUnknown kind = iota
	kindGreeting
	kindEvent
	kindAnswer
)

// kind tells messages apart. A kind that is not known is passed over, so that a newer QEMU may have more.
func (m message) kind() kind {
	switch {
	case m.Greeting != nil:
		return kindGreeting
	case m.Event != "":
		return kindEvent
	case m.Return != nil || m.Error != nil:
		return kindAnswer
	}
	return kindUnknown
}

func parseMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("qmp: not a message: %w", err)
	}
	return m, nil
}

// readLine reads one line that is not blank, without its end, of at most limit bytes.
func readLine(in *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("qmp: a message is longer than %d bytes", limit)
		}
		line = append(line, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}
