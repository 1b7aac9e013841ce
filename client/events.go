package client

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// maxEvent bounds one event, so that a server gone wild does not take the client's memory.
const maxEvent = 16 << 20

// event is one server-sent event.
type event struct {
	name string
	data []byte
}

func (e event) decode(v any) error {
	if err := json.Unmarshal(e.data, v); err != nil {
		return spore.Errorf(spore.CodeUnreachable, "an event %q of the server cannot be read: %w", e.name, err)
	}
	return nil
}

func (e event) asError() error {
	var wire api.Error
	if err := e.decode(&wire); err != nil {
		return err
	}
	return sporeError(&wire)
}

// eventReader reads server-sent events: fields, one a line, ended by an empty line; lines that begin with a colon are
// comments.
type eventReader struct{ r *bufio.Reader }

func newEventReader(r io.Reader) *eventReader { return &eventReader{bufio.NewReader(r)} }

// next answers the next event that has data. It is io.EOF when the stream ends; half an event at the end is dropped, as
// the format says.
func (r *eventReader) next() (event, error) {
	var ev event
	var data [][]byte
	size := 0
	for {
		line, err := r.line(maxEvent - size)
		if err != nil {
			return event{}, err
		}
		size += len(line)
		if len(line) == 0 {
			if data == nil {
				ev, size = event{}, 0
				continue
			}
			ev.data = bytes.Join(data, []byte("\n"))
			return ev, nil
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			ev.name = string(value)
		case "data":
			data = append(data, value)
		}
	}
}

// line reads one line of at most limit bytes, without its end.
func (r *eventReader) line(limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > limit:
			return nil, spore.Errorf(spore.CodeUnreachable, "an event of the server is larger than %d bytes", maxEvent)
		case err == nil:
			return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		default:
			return nil, spore.Errorf(spore.CodeUnreachable, "the connection to the server broke: %w", err)
		}
	}
}

// follow reads a stream of progress events that ends with a result.
func follow[T any](resp *http.Response, err error, progress func(api.Progress)) (*T, error) {
	if err := settle(resp, err); err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	events := newEventReader(resp.Body)
	for {
		ev, err := events.next()
		if err != nil {
			if ctxErr := resp.Request.Context().Err(); ctxErr != nil {
				return nil, canceled(ctxErr)
			}
			if err == io.EOF {
				err = spore.Errorf(spore.CodeUnreachable, "the server went away before it was done")
			}
			return nil, err
		}
		switch ev.name {
		case "progress":
			var p api.Progress
			if err := ev.decode(&p); err != nil {
				return nil, err
			}
			if progress != nil {
				progress(p)
			}
		case "error":
			return nil, ev.asError()
		case "result":
			var v T
			if err := ev.decode(&v); err != nil {
				return nil, err
			}
			return &v, nil
		}
	}
}
