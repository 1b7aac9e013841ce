package fcdouble_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := fcdouble.Clean(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func TestVersions(t *testing.T) {
	for _, v := range []string{fcdouble.Versions[0], fcdouble.DefaultVersion} {
		b := fcdouble.Build(t, fcdouble.Options{Version: v})
		for path, want := range map[string]string{b.Firecracker: "Firecracker v" + v, b.Jailer: "Jailer v" + v} {
			out, err := exec.Command(path, "--version").Output()
			if err != nil || !strings.HasPrefix(string(out), want+"\n") {
				t.Errorf("%s --version says %q, %v", path, out, err)
			}
		}
	}
}
