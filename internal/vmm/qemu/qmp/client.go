// Package qmp speaks QEMU's machine protocol: commands and their answers, and events, as lines of JSON over a unix
// socket.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one line from QEMU. A VM's answers are a few KiB; the bound is there because a hypervisor that a
// guest has taken over may send anything.
const maxMessage = 4 << 20

// writeTimeout is how long QEMU may leave its end of the socket unread before the connection counts as lost.
const writeTimeout = 30 * time.Second

// ErrClosed is the cause of every error after the connection has ended.
var ErrClosed = errors.New("qmp: connection closed")

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", ...
	Desc    string
}

func (e *Error) Error() string { return fmt.Sprintf("qmp: %s: %s", e.Command, e.Desc) }

// Event is something QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage
}

// Client is one connection. Its methods may be called from many goroutines.
type Client struct {
	conn    *net.UnixConn
	onEvent func(Event)

	writing sync.Mutex

	mu      sync.Mutex
	next    uint64
	pending map[string]*Call
	err     error // why the connection ended

	greeted chan struct{}
	done    chan struct{}
}

// New takes over conn and reads from it until it ends. Events go to onEvent in the order they come, from the reading
// goroutine, which must not be held up. Commands before Start are refused by QEMU.
func New(conn *net.UnixConn, onEvent func(Event)) *Client {
	c := &Client{
		conn: conn, onEvent: onEvent, pending: map[string]*Call{},
		greeted: make(chan struct{}), done: make(chan struct{}),
	}
	go c.read()
	return c
}

// Start waits for the greeting and opens the connection for commands.
func (c *Client) Start(ctx context.Context) error {
	select {
	case <-c.greeted:
	case <-c.done:
		return c.closedErr()
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.Do(ctx, "qmp_capabilities", nil, nil)
}

// Done is closed when the connection has ended and the last event was delivered.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection. QEMU goes on.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Call is a command on its way.
type Call struct {
	command string
	client  *Client
	answer  chan message
}

// Do runs a command and decodes its answer into result, unless that is nil.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	call, err := c.Send(command, args, nil)
	if err != nil {
		return err
	}
	return call.Wait(ctx, result)
}

// Send sends a command, with a file for QEMU to keep if file is not nil, and returns without waiting. QEMU works
// commands off in the order they were sent.
func (c *Client) Send(command string, args any, file *os.File) (*Call, error) {
	call := &Call{command: command, client: c, answer: make(chan message, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.closedErr()
	}
	c.next++
	id := strconv.FormatUint(c.next, 10)
	c.pending[id] = call
	c.mu.Unlock()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err == nil {
		err = c.write(append(line, '\n'), file)
	}
	if err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		// The writer may notice the end before the reader has told.
		if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			err = fmt.Errorf("%w: %w", ErrClosed, err)
		}
		return nil, fmt.Errorf("qmp: send %s: %w", command, err)
	}
	return call, nil
}

func (c *Client) write(line []byte, file *os.File) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if file == nil {
		_, err := c.conn.Write(line)
		return err
	}
	var n int
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) {
		n, _, sendErr = c.conn.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	if sendErr == nil && n < len(line) {
		_, sendErr = c.conn.Write(line[n:])
	}
	return sendErr
}

// Wait waits for the answer. When ctx ends first the command may still take effect.
func (call *Call) Wait(ctx context.Context, result any) error {
	var m message
	select {
	case m = <-call.answer:
	default:
		select {
		case m = <-call.answer:
		case <-call.client.done:
			select {
			case m = <-call.answer: // came with the last bytes
			default:
				return fmt.Errorf("qmp: %s: %w", call.command, call.client.closedErr())
			}
		case <-ctx.Done():
			return fmt.Errorf("qmp: %s: %w", call.command, ctx.Err())
		}
	}
	if m.Error != nil {
		return &Error{Command: call.command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("qmp: answer to %s: %w", call.command, err)
	}
	return nil
}

func (c *Client) closedErr() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return ErrClosed
	}
	return c.err
}

func (c *Client) read() {
	err := c.readMessages(bufio.NewReaderSize(c.conn, 16<<10))
	c.conn.Close()
	c.mu.Lock()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		c.err = ErrClosed
	} else {
		c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.mu.Unlock()
	close(c.done)
}

func (c *Client) readMessages(in *bufio.Reader) error {
	greeted := false
	for {
		line, err := readLine(in, maxMessage)
		if err != nil {
			return err
		}
		m, err := parseMessage(line)
		if err != nil {
			return err
		}
		switch m.kind() {
		case kindGreeting:
			if !greeted {
				greeted = true
				close(c.greeted)
			}
		case kindEvent:
			if c.onEvent != nil {
				c.onEvent(Event{Name: m.Event, Data: m.Data})
			}
		case kindAnswer:
			c.mu.Lock()
			call := c.pending[m.ID]
			delete(c.pending, m.ID)
			c.mu.Unlock()
			if call != nil {
				call.answer <- m
			}
		}
	}
}
