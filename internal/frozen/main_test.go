package frozen

import (
	"flag"
	"testing"
)

// TestMain runs fewer random lives than rapid would, since each makes hundreds of files; -rapid.checks asks for more.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("30"); err != nil {
			panic(err)
		}
	}
	m.Run()
}
