package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/daemon"
)

func TestDatabaseComesFromAFileThatOthersCannotRead(t *testing.T) {
	const url = "postgres://spore:secret@db.test:5432/spore"
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		cfg  daemon.Config
		want string
		ok   bool
	}{
		"neither":        {daemon.Config{}, "", true},
		"environment":    {daemon.Config{DatabaseURL: url}, url, true},
		"file":           {daemon.Config{DatabaseFile: write("ok", url+"\n", 0o600), DatabaseURL: "postgres://other"}, url, true},
		"long scheme":    {daemon.Config{DatabaseURL: "postgresql://x/y"}, "postgresql://x/y", true},
		"others read it": {daemon.Config{DatabaseFile: write("open", url, 0o640)}, "", false},
		"no file":        {daemon.Config{DatabaseFile: filepath.Join(dir, "none")}, "", false},
		"empty file":     {daemon.Config{DatabaseFile: write("empty", "", 0o600)}, "", false},
		"large file":     {daemon.Config{DatabaseFile: write("large", url+strings.Repeat("x", 5000), 0o600)}, "", false},
		"two lines":      {daemon.Config{DatabaseFile: write("two", url+"\n"+url, 0o600)}, "", false},
		"another scheme": {daemon.Config{DatabaseURL: "mysql://spore:secret@db"}, "", false},
		"a password":     {daemon.Config{DatabaseURL: "secret"}, "", false},
	} {
		got, err := c.cfg.Database()
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err != nil && (spore.CodeOf(err) != spore.CodeInvalid || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
