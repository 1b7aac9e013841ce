package spore

import (
	"context"
	"errors"
	"fmt"
)

// Code says what class of refusal an Error is. Codes are part of the API: clients branch on them, never on text.
type Code string

const (
	CodeInvalid         Code = "invalid_argument" // the request is wrong; Field says where
	CodeUnauthenticated Code = "unauthenticated"  // no token, or a wrong one
	CodeNotFound        Code = "not_found"        // nothing is known under that id or name
	CodeConflict        Code = "conflict"         // the state of the thing, or its name, forbids the act
	CodeInUse           Code = "in_use"           // something still stands on it; the message says what
	CodeBusy            Code = "busy"             // a rival operation, or no room right now; trying again may help
	CodeNoSpace         Code = "no_space"         // a disk, or memory, is full; the message says how much is missing
	CodeStale           Code = "stale"            // frozen with components that the nodes no longer run
	CodeUnreachable     Code = "unreachable"      // a node, registry or guest does not answer
	CodeDamaged         Code = "damaged"          // stored bytes are not the bytes that were written
	CodeUnsupported     Code = "unsupported"      // this engine or host cannot do it
	CodeCanceled        Code = "canceled"         // the caller, or a cancel request, ended it
	CodeInternal        Code = "internal"         // a defect of Spore: logged in full, never shown
)

// Error is a refusal: what happened (Message), why (Cause) and what to do about it (Hint).
// Message and Hint are safe to show to the user and hold no secrets.
type Error struct {
	Code    Code
	Message string
	Field   string // the offending field of the request, for CodeInvalid
	Hint    string
	Reason  Reason // what exactly it was, for clients that need to know more than the class; often empty
	Cause   error
}

// Errorf makes an Error. A %w operand becomes its Cause.
func Errorf(code Code, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: wrapped.Error(), Cause: errors.Unwrap(wrapped)}
}

// Invalidf makes a CodeInvalid error about one field of the request, named as the API spells it.
func Invalidf(field, format string, args ...any) *Error {
	e := Errorf(CodeInvalid, format, args...)
	e.Field = field
	return e
}

// WithHint returns e with a hint: one sentence that says what the user can do.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Because returns e with a reason.
func (e *Error) Because(r Reason) *Error {
	e.Reason = r
	return e
}

// WithCause returns e with err as its cause. The cause is for logs and errors.Is; it does not alter the message.
func (e *Error) WithCause(err error) *Error {
	e.Cause = err
	return e
}

func (e *Error) Error() string {
	if e.Field != "" {
		return e.Field + ": " + e.Message
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// AsError finds the Error inside err. Anything that carries none is CodeInternal with a message that says nothing
// of the inside; a bare context end is CodeCanceled. It returns nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: CodeCanceled, Message: "the operation was ended before it was done", Cause: err}
	}
	return &Error{Code: CodeInternal, Message: "internal error", Hint: "the server's log has the details", Cause: err}
}

// CodeOf returns the code of err, "" for nil and CodeInternal for an error that carries none.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}
