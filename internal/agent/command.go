package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"connectrpc.com/connect"
)

// defaultPath is for images that set no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is what to run, before anything is looked up.
type command struct {
	cmd  string
	args []string
	env  map[string]string // added to the sandbox's
	cwd  string            // empty for the default
	user string            // empty for the default
	tag  string
	pty  *ptySize // nil without a terminal
	// stdin says whether standard input is kept open for SendInput.
	stdin bool
	// sink sees all output, as it comes, before any reader. It must not block.
	sink func([]byte)
}

type ptySize struct{ cols, rows uint16 }

// prepared is a command ready to execute.
type prepared struct {
	command
	path    string
	dir     string
	environ []string
	as      User
}

// prepare looks up everything a command names. Its errors are connect errors that name what is missing.
func (a *Agent) prepare(c command) (prepared, error) {
	p := prepared{command: c}
	var err error
	if p.as, err = a.user(c.user); err != nil {
		return p, err
	}
	env := a.settings.environ()
	for k, v := range c.env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return p, invalidf("envs: %q cannot be the name of an environment variable, or its value holds a zero byte", k)
		}
		env[k] = v
	}
	setDefault := func(k, v string) {
		if _, ok := env[k]; !ok && v != "" {
			env[k] = v
		}
	}
	setDefault("PATH", defaultPath)
	setDefault("HOME", p.as.Home)
	setDefault("USER", p.as.Name)
	setDefault("LOGNAME", p.as.Name)
	if c.pty != nil {
		setDefault("TERM", "xterm-256color")
	}
	for k, v := range env {
		p.environ = append(p.environ, k+"="+v)
	}
	sort.Strings(p.environ)

	if p.dir, err = a.resolvePath(c.cwd, p.as); err != nil {
		return p, err
	}
	if info, err := os.Stat(p.dir); err != nil {
		return p, invalidf("cwd: %s: %v", p.dir, errors.Unwrap(err))
	} else if !info.IsDir() {
		return p, invalidf("cwd: %s is not a directory", p.dir)
	}
	for _, arg := range append([]string{c.cmd}, c.args...) {
		if strings.Contains(arg, "\x00") {
			return p, invalidf("an argument holds a zero byte")
		}
	}
	p.path, err = lookPath(c.cmd, p.dir, env["PATH"])
	if err != nil && c.cmd == "/bin/bash" {
		// The SDKs ask for bash whatever the image; options that they pass mean the same to any shell.
		if sh, err2 := lookPath("/bin/sh", p.dir, ""); err2 == nil {
			p.path, p.cmd, err = sh, "/bin/sh", nil
		}
	}
	return p, err
}

// lookPath finds an executable as a shell would.
func lookPath(cmd, dir, path string) (string, error) {
	if cmd == "" {
		return "", invalidf("cmd: no command was given")
	}
	if strings.Contains(cmd, "/") {
		full := cmd
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if err := executable(full); err != nil {
			return "", commandError(cmd, err)
		}
		return full, nil
	}
	var found error = fs.ErrNotExist
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		full := filepath.Join(d, cmd)
		err := executable(full)
		if err == nil {
			return full, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			found = err
		}
	}
	return "", commandError(cmd, found)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return syscall.EISDIR
	case info.Mode()&0o111 == 0:
		return fs.ErrPermission
	}
	return nil
}

// commandError says why a command cannot be run.
func commandError(cmd string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("%s: no such command in the sandbox", cmd))
	case errors.Is(err, syscall.EISDIR):
		return notRunnable("%s is a directory, not a command", cmd)
	case errors.Is(err, fs.ErrPermission):
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s: not executable for this user", cmd))
	case errors.Is(err, syscall.ENOEXEC):
		return notRunnable("%s is not a program for this machine", cmd)
	case errors.Is(err, syscall.E2BIG):
		return invalidf("%s: arguments and environment are too long together", cmd)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%s: %w", cmd, err))
	}
	return connect.NewError(connect.CodeInternal, fmt.Errorf("%s: %w", cmd, err))
}

// notRunnable is about a file that is there and that this user could not run either way. The wire has one code for all that
// a shell would end with 126 for.
func notRunnable(format string, args ...any) error {
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf(format, args...))
}

func invalidf(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}
