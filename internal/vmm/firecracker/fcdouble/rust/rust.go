// Package rust words the errors of operating system calls as programs written in Rust against musl libc word them, so that what
// the stand-ins say can be compared with what the real programs say.
package rust

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// words are those whose capitals or wording differ from Go's by more than the first letter.
var words = map[syscall.Errno]string{
	syscall.EADDRINUSE:   "Address in use",
	syscall.EBUSY:        "Resource busy",
	syscall.EIO:          "I/O error",
	syscall.ENOTTY:       "Not a tty",
	syscall.EXDEV:        "Cross-device link",
	syscall.ENXIO:        "No such device or address",
	syscall.ECONNREFUSED: "Connection refused",
}

// Message is err as Rust displays an io::Error: "No such file or directory (os error 2)".
func Message(err error) string {
	var no syscall.Errno
	if !errors.As(err, &no) {
		return err.Error()
	}
	text, ok := words[no]
	if !ok {
		b := []byte(no.Error())
		if len(b) > 0 && b[0] >= 'a' && b[0] <= 'z' {
			b[0] -= 'a' - 'A'
		}
		text = string(b)
	}
	return fmt.Sprintf("%s (os error %d)", text, int(no))
}

// Debug is err as Rust's derived Debug shows an io::Error.
func Debug(err error) string {
	var no syscall.Errno
	if !errors.As(err, &no) {
		return strconv.Quote(err.Error())
	}
	kind := map[syscall.Errno]string{
		syscall.ENOENT: "NotFound", syscall.EEXIST: "AlreadyExists", syscall.EACCES: "PermissionDenied", syscall.EPERM: "PermissionDenied",
	}[no]
	if kind == "" {
		kind = "Uncategorized"
	}
	message := Message(no)
	return fmt.Sprintf("Os { code: %d, kind: %s, message: %q }", int(no), kind, message[:len(message)-len(fmt.Sprintf(" (os error %d)", int(no)))])
}

// Abort ends the process as a panic does, by a signal.
func Abort() {
	var usual struct{ handler, flags, restorer, mask uintptr }
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGABRT), uintptr(unsafe.Pointer(&usual)), 0, 8, 0, 0)
	syscall.Kill(os.Getpid(), syscall.SIGABRT)
	os.Exit(134) // not reached
}
