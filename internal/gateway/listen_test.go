package gateway_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/gateway"
)

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "spore")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := "unix:" + filepath.Join(dir, "s")
	l, err := gateway.Listen(t.Context(), socket, "")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "s")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := gateway.Listen(t.Context(), socket, ""); spore.CodeOf(err) != spore.CodeInUse {
		t.Errorf("twice: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = gateway.Listen(t.Context(), socket, ""); err != nil {
		t.Fatalf("after a dead server: %v", err)
	}
	l.Close()
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "nonsense"} {
		if _, err := gateway.Listen(t.Context(), address, ""); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%s without a token: %v", address, err)
		}
	}
	tcp, err := gateway.Listen(t.Context(), "127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if _, err := gateway.Listen(t.Context(), tcp.Addr().String(), ""); spore.CodeOf(err) != spore.CodeInUse {
		t.Errorf("taken: %v", err)
	}
}

func TestReadToken(t *testing.T) {
	for _, c := range []struct {
		name, contents string
		mode           os.FileMode
		want           string
	}{
		{"good", "0123456789abcdef\n", 0o600, "0123456789abcdef"},
		{"open", "0123456789abcdef", 0o644, ""},
		{"short", "0123", 0o600, ""},
		{"empty", "", 0o600, ""},
		{"spaces", "0123456789 abcdef", 0o600, ""},
		{"large", strings.Repeat("x", 5000), 0o600, ""},
	} {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(c.contents), c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := gateway.ReadToken(file)
		if got != c.want || (err == nil) != (c.want != "") || c.want == "" && spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	if _, err := gateway.ReadToken("/does/not/exist"); spore.CodeOf(err) != spore.CodeInvalid {
		t.Error(err)
	}
}
