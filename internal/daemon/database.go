package daemon

import (
	"bytes"
	"io"
	"os"
	"strings"

	"github.com/sporevm/spore"
)

const maxDatabaseURL = 4096

// Database is the URL of the PostgreSQL database that rows are to be kept in; "" says that it is SQLite. It is a secret. A file
// that others can read is refused, like one that holds something else.
func (cfg Config) Database() (url string, err error) {
	source := "SPORE_DATABASE_URL"
	switch {
	case cfg.DatabaseFile != "":
		source = cfg.DatabaseFile
		if url, err = readDatabaseFile(cfg.DatabaseFile); err != nil {
			return "", err
		}
	case cfg.DatabaseURL == "":
		return "", nil
	default:
		url = strings.TrimSpace(cfg.DatabaseURL)
	}
	// What it is instead is not repeated: it may be a password.
	if !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") || strings.ContainsAny(url, "\r\n\x00") {
		return "", spore.Invalidf("database-file", "%s does not hold the URL of a PostgreSQL database", source).
			WithHint("one line: postgres://USER:PASSWORD@HOST:PORT/NAME")
	}
	return url, nil
}

func readDatabaseFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", spore.Invalidf("database-file", "cannot be read: %v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return "", spore.Invalidf("database-file", "%s can be read by others (mode %04o)", path, st.Mode().Perm()).WithHint("chmod 600 %s", path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxDatabaseURL+1))
	if err != nil {
		return "", spore.Invalidf("database-file", "cannot be read: %v", err)
	}
	if len(raw) > maxDatabaseURL {
		return "", spore.Invalidf("database-file", "%s is too large for a URL", path)
	}
	return string(bytes.TrimSpace(raw)), nil
}
