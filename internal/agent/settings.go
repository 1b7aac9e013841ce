package agent

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"connectrpc.com/connect"
)

// settings is what configure and greet have told the agent about the sandbox.
type settings struct {
	mu      sync.RWMutex
	user    string // default user, as the image spells it
	workDir string // default working directory; empty when the image names none
	env     map[string]string
}

// environ returns a copy of the environment that every process gets.
func (s *settings) environ() map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	env := maps.Clone(s.env)
	if env == nil {
		env = map[string]string{}
	}
	return env
}

// merge adds to the environment of later processes.
func (s *settings) merge(env map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.env == nil {
		s.env = map[string]string{}
	}
	maps.Copy(s.env, env)
}

func (s *settings) defaults() (user, workDir string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.user, s.workDir
}

// user resolves a user as the request spells it, or the default one.
func (a *Agent) user(spec string) (User, error) {
	if spec == "" {
		spec, _ = a.settings.defaults()
	}
	acc, err := a.accounts()
	if err != nil {
		return User{}, connect.NewError(connect.CodeInternal, err)
	}
	u, err := acc.resolve(spec)
	if err != nil {
		return User{}, invalidf("user: %v", err)
	}
	return u, nil
}

func (a *Agent) accounts() (accounts, error) {
	return readAccounts("/etc/passwd", "/etc/group")
}

// requestUser reads the user that a request names: the user part of basic authorization, which is how the SDKs say it.
// They leave the password empty; one that is there is the group of user:group.
func requestUser(h http.Header) string {
	r := http.Request{Header: h}
	user, group, _ := r.BasicAuth()
	if group = strings.TrimSuffix(group, ":"); group != "" {
		return user + ":" + group
	}
	return user
}

// resolvePath makes a path absolute: "~" is the user's home, and what is relative begins at the sandbox's working
// directory, or at the user's home when the image names none.
func (a *Agent) resolvePath(path string, u User) (string, error) {
	if strings.Contains(path, "\x00") {
		return "", invalidf("path: holds a zero byte")
	}
	switch {
	case path == "~" || strings.HasPrefix(path, "~/"):
		return filepath.Join(u.Home, path[1:]), nil
	case strings.HasPrefix(path, "~"):
		name, rest, _ := strings.Cut(path[1:], "/")
		other, err := a.user(name)
		if err != nil {
			break // a file whose name begins with a tilde
		}
		return filepath.Join(other.Home, rest), nil
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	}
	_, base := a.settings.defaults()
	if base == "" {
		base = u.Home
		if info, err := os.Stat(base); err != nil || !info.IsDir() {
			base = "/" // images often name homes that they do not have
		}
	}
	return filepath.Join("/", base, path), nil
}
