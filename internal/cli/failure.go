package cli

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
)

func quote(s string) string { return strconv.Quote(s) }

// usageError is a command line that cannot be understood.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(cmd *cobra.Command, err error) error {
	var known *usageError
	if errors.As(err, &known) {
		return err
	}
	hint := ""
	var refused *spore.Error
	if errors.As(err, &refused) && refused.Hint != "" {
		hint = refused.Hint + "\n"
	}
	return &usageError{err: err, hint: hint + "usage: " + cmd.UseLine() + "\n      see " + cmd.CommandPath() + " --help"}
}

// exitError ends the process with a code; err may be nil, when all is said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return "exit code " + strconv.Itoa(e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// finish tells the user what went wrong and answers the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return exitOK
	}
	code := exitFailure
	var exit *exitError
	if errors.As(err, &exit) {
		if code = exit.code; exit.err == nil {
			return code
		}
		err = exit.err
	}
	var misuse *usageError
	switch {
	case errors.As(err, &misuse):
		a.complain(misuse.err.Error(), "", misuse.hint, "")
		return exitUsage
	case !a.started:
		a.complain(err.Error(), "", "see spore --help", "")
		return exitUsage
	}
	for _, e := range flatten(err) {
		var known *spore.Error
		if errors.As(e, &known) {
			text := known.Error()
			if known.Code == spore.CodeInvalid && known.Field != "" && e == error(known) {
				text = known.Field + ": " + known.Message
			} else if e != error(known) {
				text = e.Error()
			}
			if code >= exitSpore { // between the lines of a command in a sandbox; the exit code tells
				a.complain(text, "", known.Hint, "")
				continue
			}
			a.complain(text, causeOf(known, text), known.Hint, codeWords(known.Code, known.Reason))
			continue
		}
		a.complain(e.Error(), "", "", "")
	}
	if code == exitFailure && spore.CodeOf(err) == spore.CodeCanceled {
		code = exitSignal + 2
	}
	return code
}

// codeWords is a code and, where there is one, the reason within it.
func codeWords(code spore.Code, reason spore.Reason) string {
	if reason == "" {
		return string(code)
	}
	return string(code) + ", " + string(reason)
}

// complain prints an error: what happened, why, what to do about it, and its code. Any of them may quote what a guest or an
// image said.
func (a *app) complain(text, cause, hint, code string) {
	for _, line := range []detail{{"error", text}, {"cause", cause}, {"hint", hint}, {"code", code}} {
		if line.value != "" {
			fmt.Fprintf(a.Stderr, "%s: %s\n", line.name, printable(line.value, true))
		}
	}
}

// causeOf is why something was refused, when the server told so and text does not. What went wrong on the way to the server
// is in the text already.
func causeOf(e *spore.Error, text string) string {
	if e.Cause == nil || contains(text, e.Cause.Error()) || contains(e.Cause.Error(), e.Message) || e.Code == spore.CodeUnreachable || e.Code == spore.CodeCanceled {
		return ""
	}
	return e.Cause.Error()
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}
