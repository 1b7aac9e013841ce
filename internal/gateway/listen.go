package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/sporevm/spore"
)

const minTokenLength = 16

// ReadToken reads the token that clients must show from a file, without the white space around it. It refuses a file
// that others can read and a token that can be guessed.
func ReadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", spore.Invalidf("token-file", "cannot be read: %v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return "", spore.Invalidf("token-file", "%s can be read by others (mode %04o)", path, st.Mode().Perm()).WithHint("chmod 600 %s", path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, 4097))
	if err != nil {
		return "", spore.Invalidf("token-file", "cannot be read: %v", err)
	}
	token := string(bytes.TrimSpace(raw))
	switch {
	case len(raw) > 4096:
		return "", spore.Invalidf("token-file", "%s is too large for a token", path)
	case len(token) < minTokenLength:
		return "", spore.Invalidf("token-file", "the token in %s is shorter than %d characters", path, minTokenLength).
			WithHint("make one with: head -c 32 /dev/urandom | base64 -w0 > %s", path)
	case strings.IndexFunc(token, func(r rune) bool { return r < '!' || r > '~' }) >= 0:
		return "", spore.Invalidf("token-file", "the token in %s has characters other than visible ASCII", path)
	}
	return token, nil
}

// Loopback says whether a listen address, host:port or unix:PATH, can be reached from this machine only.
func Loopback(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Listen listens on host:port or unix:PATH. Without a token it refuses an address that other machines can reach. A unix
// socket is open to its owner alone; one that a dead server left behind is replaced.
func Listen(ctx context.Context, address, token string) (net.Listener, error) {
	if !Loopback(address) && token == "" {
		return nil, spore.Invalidf("listen", "%s can be reached from other machines and there is no token", address).
			WithHint("give --token-file, or listen on 127.0.0.1")
	}
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(address, "unix:")
	if !isUnix {
		l, err := lc.Listen(ctx, "tcp", address)
		return l, listenError(address, err)
	}
	l, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, listenError(address, err)
		}
		l, err = lc.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, listenError(address, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// abandoned says whether path is a socket that nobody listens on.
func abandoned(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

func listenError(address string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return spore.Errorf(spore.CodeInUse, "%s is taken by another program", address).WithCause(err).WithHint("give another address with --listen")
	}
	return spore.Invalidf("listen", "cannot listen on %s: %v", address, err).WithCause(err)
}
