package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

// plan is what a server in a process of its own is told to do.
type plan struct {
	Dir, Host, Namespaces, Run string
}

const planVariable = "SPORE_NETWORK_TEST_PLAN"

func TestMain(m *testing.M) {
	if raw := os.Getenv(planVariable); raw != "" {
		serveAndChurn(raw)
		return
	}
	os.Exit(m.Run())
}

// serveAndChurn is a server that makes, changes and removes networks until it is killed.
func serveAndChurn(raw string) {
	fatal := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	var p plan
	fatal(json.Unmarshal([]byte(raw), &p))
	ctx := context.Background()
	m, err := New(Options{Dir: p.Dir, Host: p.Host, NamespaceDir: p.Namespaces, RunDir: p.Run, PoolSize: 2})
	fatal(err)
	missing, err := m.Recover(ctx, []string{"stays"})
	fatal(err)
	if len(missing) > 0 {
		_, err = m.Attach(ctx, "stays", isolated(spore.Egress{}), spore.Limits{})
		fatal(err)
	}
	fmt.Println("serving")
	for i := 0; ; i++ {
		fatal(life(ctx, m))
		if i == 0 {
			fmt.Println("one life is over")
		}
	}
}

func TestKilledServers(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	p := plan{Dir: t.TempDir(), Host: w.hostPath, Namespaces: w.dir, Run: w.runDir()}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var g *guest
	for round := range 6 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), planVariable+"="+string(raw))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for range 2 {
			if line, err := lines.ReadString('\n'); err != nil || strings.HasPrefix(line, "failed") {
				t.Errorf("round %d: the server says %q, %v", round, line, err)
			}
		}
		time.Sleep(time.Duration(round) * 37 * time.Millisecond) // somewhere in its work
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(lines)
		cmd.Wait()
		if len(rest) > 0 {
			t.Errorf("round %d: the server says %q", round, rest)
		}
		if g == nil {
			m := w.manager(p.Dir)
			known, _, err := m.records()
			if err != nil {
				t.Fatal(err)
			}
			for name, r := range known {
				if r.ID == "stays" {
					g = w.plug(Link{NetNS: m.netnsPath(name), Tap: TapName, MAC: GuestMAC, Address: GuestAddress, Gateway: Gateway})
				}
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.reach("tcp", worldEcho, patience); err != nil {
			t.Errorf("round %d: the one that stays: %v", round, err)
		}
	}
	m := w.manager(p.Dir)
	if missing, err := m.Recover(t.Context(), []string{"stays"}); err != nil || len(missing) > 0 {
		t.Errorf("%v, %v", missing, err)
	}
	if n := strings.Count(w.traces(), "namespace "); n != 1 {
		t.Errorf("%d namespaces are left", n)
	}
	closeAll(t, m)
	if after := w.traces(); after != before {
		t.Errorf("left behind:\n%s\nthere was:\n%s", after, before)
	}
}
