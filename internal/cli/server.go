package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/client"
)

// serverFile is the file in the data directory in which a server says where it is to be found.
const serverFile = "server.json"

// connect makes the client, once.
func (a *app) connect() (*client.Client, error) {
	if a.cl != nil {
		return a.cl, nil
	}
	url, err := a.serverURL()
	if err != nil {
		return nil, err
	}
	opts := []client.Option{client.WithUserAgent("spore-cli/" + a.Version)}
	if file := a.setting(a.tokenFile, "SPORE_TOKEN_FILE"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return nil, spore.Invalidf("token-file", "cannot be read: %v", err)
		}
		opts = append(opts, client.WithToken(string(bytes.TrimSpace(token))))
	}
	a.cl, err = client.New(url, opts...)
	return a.cl, err
}

func (a *app) setting(flag, env string) string {
	if flag != "" {
		return flag
	}
	return a.Getenv(env)
}

func (a *app) serverURL() (string, error) {
	if url := a.setting(a.server, "SPORE_URL"); url != "" {
		return url, nil
	}
	data := a.setting(a.data, "SPORE_DATA")
	if data == "" {
		return "", nil
	}
	raw, err := os.ReadFile(filepath.Join(data, serverFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", spore.Errorf(spore.CodeUnreachable, "no server runs on %s", data).WithHint("start one with: spore serve --data %s", data)
	}
	if err != nil {
		return "", err
	}
	var where struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(raw, &where); err != nil || where.URL == "" {
		return "", spore.Errorf(spore.CodeDamaged, "%s does not say where the server is", filepath.Join(data, serverFile)).WithHint("restart the server")
	}
	return where.URL, nil
}

// dataDir is the data directory for commands that use it themselves.
func (a *app) dataDir() (string, error) {
	data := a.setting(a.data, "SPORE_DATA")
	switch {
	case data != "":
	case os.Geteuid() == 0:
		data = "/var/lib/spore"
	default:
		home, err := os.UserHomeDir()
		if err != nil {
			return "", spore.Invalidf("data", "is not given, and there is no home directory").WithCause(err).WithHint("give --data DIR")
		}
		data = filepath.Join(home, ".local", "share", "spore")
	}
	return filepath.Abs(data)
}

// making returns a context for a request that makes something: it carries a fresh idempotency key, and does not end with
// ctx, because a request that is cut off would leave the caller ignorant of what it made.
func making(ctx context.Context) context.Context {
	key := make([]byte, 16)
	rand.Read(key)
	return client.WithIdempotencyKey(context.WithoutCancel(ctx), hex.EncodeToString(key))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
