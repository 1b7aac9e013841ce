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
	return &usageError{err: err, hint: "usage: " + cmd.UseLine() + "\n      see " + cmd.CommandPath() + " --help"}
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
		a.complain(misuse.err.Error(), misuse.hint)
		return exitUsage
	case !a.started:
		a.complain(err.Error(), "see spore --help")
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
			if known.Cause != nil && !contains(text, known.Cause.Error()) && showable(known.Cause) {
				text += ": " + known.Cause.Error()
			}
			a.complain(text, known.Hint)
			continue
		}
		a.complain(e.Error(), "")
	}
	if code == exitFailure && spore.CodeOf(err) == spore.CodeCanceled {
		code = exitSignal + 2
	}
	return code
}

// complain prints an error and a hint; either may quote what a guest or an image said.
func (a *app) complain(text, hint string) {
	fmt.Fprintf(a.Stderr, "error: %s\n", printable(text, true))
	if hint != "" {
		fmt.Fprintf(a.Stderr, "hint: %s\n", printable(hint, true))
	}
}

// showable says whether a cause came from the server, which leaves out what is not for users.
func showable(cause error) bool {
	var known *spore.Error
	return errors.As(cause, &known)
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
