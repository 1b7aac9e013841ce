package pager

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Server and pager speak in lines of JSON: orders one way, reports the other.

// maxLine bounds a line; the longest is a hot set.
const maxLine = 256 << 10

// What an order asks for.
const (
	opStart  = "start"  // with setup; only on the connection that the pager is born with
	opStats  = "stats"  // answered by a report of stats
	opHotSet = "hotSet" // answered by a report with a hot set
	opStop   = "stop"   // answered by the end of the process
)

type order struct {
	Op    string `json:"op"`
	Seq   int64  `json:"seq,omitempty"` // the answer has it too
	Setup *setup `json:"setup,omitempty"`
}

// setup is what a pager is told at its start. The files it speaks of are passed as descriptors, in this order: the base
// file, the layers, the hot set.
type setup struct {
	ID      string   `json:"id"`
	Size    int64    `json:"size"`
	Base    string   `json:"base"` // what errors call it
	Kind    string   `json:"kind"`
	Names   []string `json:"names"`
	HotSet  bool     `json:"hotSet"`
	Record  int64    `json:"record"`  // milliseconds to record for from the first fault on; 0 is not at all
	UID     int      `json:"uid"`     // of the VMM
	Connect int64    `json:"connect"` // milliseconds that the VMM has to connect
}

// Kinds of what lies over the base file.
const (
	kindNone   = ""
	kindSpool  = "spool"
	kindLayers = "layers"
)

// state of a pager.
type state string

const (
	stateWaiting state = "waiting" // for its VMM
	stateServing state = "serving"
	stateFailed  state = "failed" // it serves no more and its VMM must be ended
	stateEnded   state = "ended"  // its VMM has ended, and so will it
)

// Kinds of reports.
const (
	reportState    = "state"    // sent on connecting and at every change
	reportStats    = "stats"    // an answer
	reportHotSet   = "hotSet"   // an answer
	reportRecorded = "recorded" // a hot set is complete
)

type report struct {
	Kind    string   `json:"kind"`
	Seq     int64    `json:"seq,omitempty"` // of the order that this answers
	State   state    `json:"state,omitempty"`
	VMM     int      `json:"vmm,omitempty"` // its process
	Failure *failure `json:"failure,omitempty"`
	Stats   *Stats   `json:"stats,omitempty"`
	HotSet  []byte   `json:"hotSet,omitempty"` // in the form of its file
}

// failure is a spore.Error as it travels.
type failure struct {
	Code    spore.Code `json:"code"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
}

func newFailure(err error) *failure {
	var e *spore.Error
	if errors.As(err, &e) {
		return &failure{Code: e.Code, Message: err.Error(), Hint: e.Hint}
	}
	return &failure{Code: spore.CodeInternal, Message: err.Error()}
}

func (f *failure) err() error {
	if f.Code == spore.CodeInternal || f.Code == "" {
		return spore.Errorf(spore.CodeInternal, "the page server failed").WithCause(errors.New(f.Message))
	}
	return spore.Errorf(f.Code, "the page server failed: %s", f.Message).WithHint("%s", f.Hint)
}

// lines reads lines of JSON.
type lines struct{ s *bufio.Scanner }

func newLines(r io.Reader) lines {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4<<10), maxLine)
	return lines{s}
}

// next reads a line into v; io.EOF when there is none.
func (l lines) next(v any) error {
	if !l.s.Scan() {
		if err := l.s.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	return decodeStrict(l.s.Bytes(), v)
}

func decodeStrict(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("pager: more than one message in a line")
	}
	return nil
}

func encodeLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	return append(b, '\n'), nil
}

// check says what is wrong with a setup.
func (s *setup) check() error {
	switch {
	case s.Size <= 0 || s.Size%vmm.PageSize != 0:
		return fmt.Errorf("pager: memory of %d bytes", s.Size)
	case s.Kind != kindNone && s.Kind != kindSpool && s.Kind != kindLayers:
		return fmt.Errorf("pager: layers of kind %q", s.Kind)
	case (s.Kind == kindNone) != (len(s.Names) == 0) || s.Kind == kindSpool && len(s.Names) != 1:
		return fmt.Errorf("pager: %d layers of kind %q", len(s.Names), s.Kind)
	case len(s.Names) > maxLayers:
		return fmt.Errorf("pager: %d layers", len(s.Names))
	case s.Connect <= 0 || s.Record < 0:
		return errors.New("pager: a time is missing")
	}
	return nil
}

// maxLayers bounds how many layers are passed to a pager.
const maxLayers = 200
