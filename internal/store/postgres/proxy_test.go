package postgres_test

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// proxy stands between a store and its database, as a network does, and fails as networks do.
type proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	thawed  chan struct{} // closed: bytes pass
	commits cut
	refuses bool
	conns   map[net.Conn]bool
}

// cut says where the next commit that passes is cut off.
type cut int

const (
	nowhere cut = iota
	before      // it does not arrive
	after       // its answer does not arrive
)

// newProxy answers a proxy and the URL by which the database is reached through it.
func newProxy(t *testing.T, database string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	const socket = ".s.PGSQL.5432"
	p := &proxy{target: filepath.Join(query.Get("host"), socket), thawed: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(p.thawed)
	dir, err := os.MkdirTemp("/tmp", "spore-proxy")
	if err != nil {
		t.Fatal(err)
	}
	if p.listener, err = net.Listen("unix", filepath.Join(dir, socket)); err != nil {
		t.Fatal(err)
	}
	p.running.Go(p.serve)
	t.Cleanup(func() {
		p.freeze(false)
		err := p.listener.Close()
		p.cutAll()
		p.running.Wait()
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	query.Set("host", dir)
	u.RawQuery = query.Encode()
	return p, u.String()
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuses := p.refuses
		p.mu.Unlock()
		server, err := net.Dial("unix", p.target)
		if err != nil || refuses {
			client.Close()
			if server != nil {
				server.Close()
			}
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		end := func() {
			client.Close()
			server.Close()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, client)
			delete(p.conns, server)
		}
		deaf := make(chan struct{}) // closed: answers do not pass
		p.running.Go(func() { p.pass(client, server, deaf); end() })
		p.running.Go(func() { answer(server, client, p, deaf); end() })
	}
}

// pass passes what the store says, until a commit is to be cut off.
func (p *proxy) pass(from, to net.Conn, deaf chan struct{}) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		p.wait()
		at := nowhere
		if bytes.Contains(buffer[:n], []byte("COMMIT\x00")) {
			p.mu.Lock()
			at, p.commits = p.commits, nowhere
			p.mu.Unlock()
		}
		switch at {
		case before:
			return
		case after:
			close(deaf)
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// answer passes what the database says, or ends when it says something that is not to pass.
func answer(from, to net.Conn, p *proxy, deaf chan struct{}) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		p.wait()
		select {
		case <-deaf:
			return
		default:
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) wait() {
	p.mu.Lock()
	thawed := p.thawed
	p.mu.Unlock()
	<-thawed
}

// freeze makes all bytes wait, or lets them pass again.
func (p *proxy) freeze(frozen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.thawed:
		if frozen {
			p.thawed = make(chan struct{})
		}
	default:
		if !frozen {
			close(p.thawed)
		}
	}
}

func (p *proxy) cutCommit(at cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commits = at
}

// cuts says whether the commit to be cut off is still to come.
func (p *proxy) cuts() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.commits != nowhere
}

// refuse makes new connections end at once, or lets them pass again.
func (p *proxy) refuse(refuses bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = refuses
}

// cutAll ends all connections that there are.
func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}
