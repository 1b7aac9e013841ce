package gateway_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/gateway"
)

const serverToken = "0123456789abcdef"

var bearerHeader = []string{"Authorization", "Bearer " + serverToken}

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func guarded(t *testing.T) (*edge, *clock) {
	now := &clock{now: time.Date(2026, 11, 1, 12, 0, 0, 500, time.UTC)}
	return newEdge(t, func(o *gateway.Options) {
		o.Token, o.TokenKey, o.Now = serverToken, bytes.Repeat([]byte{7}, 32), now.Now
	}), now
}

func TestArtifactToken(t *testing.T) {
	e, now := guarded(t)
	a, other := e.svc.AddArtifact("the bytes"), e.svc.AddArtifact("other bytes")
	at := "/v1/artifacts/" + a.ID
	e.want(401, "POST", at+"/token", "")
	made := decode[api.ArtifactToken](t, e.want(200, "POST", at+"/token", `{"ttlSeconds": 60}`, bearerHeader...))
	if made.URL != at+"/content" || strings.Contains(made.URL, made.Token) || !made.ExpiresAt.Equal(time.Date(2026, 11, 1, 12, 1, 0, 0, time.UTC)) {
		t.Errorf("token: %+v", made)
	}
	show := func(scheme, token string) []string { return []string{"Authorization", scheme + " " + token} }
	good := show("Spore-Artifact", made.Token)
	if got := e.want(200, "GET", made.URL, "", good...); got.body != "the bytes" {
		t.Errorf("content: %q", got.body)
	}
	e.want(200, "HEAD", made.URL, "", show("spore-artifact", made.Token)...)
	for _, c := range []struct {
		name, method, path string
		header             []string
	}{
		{"another artifact", "GET", "/v1/artifacts/" + other.ID + "/content", good},
		{"the artifact's row", "GET", at, good},
		{"a row by a path in disguise", "GET", at + "%2Fcontent", good},
		{"the list", "GET", "/v1/artifacts", good},
		{"something else", "GET", "/v1/info", good},
		{"another method", "POST", made.URL, good},
		{"another token", "POST", at + "/token", good},
		{"as the server's token", "GET", made.URL, show("Bearer", made.Token)},
		{"in the URL", "GET", made.URL + "?token=" + made.Token, nil},
		{"the server's token as this", "GET", made.URL, show("Spore-Artifact", serverToken)},
		{"half of it", "GET", made.URL, show("Spore-Artifact", made.Token[:len(made.Token)/2])},
		{"more than it", "GET", made.URL, show("Spore-Artifact", made.Token+"A")},
		{"with a space", "GET", made.URL, show("Spore-Artifact", made.Token+" ")},
		{"none", "GET", made.URL, show("Spore-Artifact", "")},
	} {
		if got := e.do(c.method, c.path, "", c.header...); got.status != 401 {
			if c.name == "with a space" && got.status == 200 {
				continue // the client takes it away
			}
			t.Errorf("%s: %d %s", c.name, got.status, got.body)
		}
	}
	for i := range made.Token {
		forged := []byte(made.Token)
		if forged[i]++; e.do("GET", made.URL, "", show("Spore-Artifact", string(forged))...).status == 200 {
			t.Errorf("byte %d may be anything", i)
		}
	}
	now.move(59 * time.Second)
	e.want(200, "GET", made.URL, "", good...)
	now.move(time.Second)
	if late := e.want(401, "GET", made.URL, "", good...).error(t); !strings.Contains(late.Message, "expired") {
		t.Errorf("late: %+v", late)
	}
	if strings.Contains(e.log.String(), made.Token) {
		t.Error("the token is in the log")
	}
	elsewhere := newEdge(t, func(o *gateway.Options) { o.TokenKey = bytes.Repeat([]byte{8}, 32) }) // asks for no token
	elsewhere.svc.AddArtifact("the bytes")
	elsewhere.want(200, "GET", made.URL, "")
	elsewhere.want(401, "GET", made.URL, "", good...)

	e.want(404, "POST", "/v1/artifacts/rfs-none/token", "", bearerHeader...)
	e.svc.LoseArtifact(a.ID)
	e.want(404, "GET", made.URL, "", bearerHeader...)
	if e.want(409, "POST", at+"/token", "", bearerHeader...).error(t).Code != spore.CodeConflict {
		t.Error("a token for nothing")
	}
	v := decode[api.ArtifactVerdict](t, e.want(200, "POST", at+"/verify", `{"full": true}`, bearerHeader...))
	if v.Status != spore.ArtifactFailed || !v.Full || v.Nodes[0].OK || v.Nodes[0].Error.Code != spore.CodeNotFound {
		t.Errorf("verdict: %+v", v)
	}
	e.want(200, "POST", "/v1/artifacts/"+other.ID+"/verify", "", bearerHeader...)
	if one := decode[api.Artifact](t, e.want(200, "GET", at, "", bearerHeader...)); one.Status != spore.ArtifactFailed || len(one.Placements) != 1 || *one.Users != 0 {
		t.Errorf("artifact: %+v", one)
	}
	if found := decode[api.ArtifactList](t, e.want(200, "GET", "/v1/artifacts?status=READY,PENDING", "", bearerHeader...)); len(found.Artifacts) != 1 {
		t.Errorf("artifacts: %+v", found)
	}
}

func FuzzArtifactToken(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	tokens := gateway.NewTokens(bytes.Repeat([]byte{7}, 32), func() time.Time { return now })
	good := tokens.Issue("rfs-1", now.Add(time.Minute))
	f.Add(good)
	f.Add(tokens.Issue("rfs-1", now))
	f.Add(tokens.Issue("rfs-1", time.Unix(-1, 0)))
	f.Add("a1.")
	f.Add("a1." + strings.Repeat("A", 54))
	f.Add(good + "=")
	f.Add(good[:10] + "\n" + good[11:])
	f.Fuzz(func(t *testing.T, token string) {
		if err := tokens.Admit("rfs-2", token); err == nil {
			t.Errorf("%q is good for another artifact", token)
		}
		end, mac, ok := gateway.ParseToken(token)
		if !ok {
			if tokens.Admit("rfs-1", token) == nil {
				t.Errorf("%q is good and cannot be read", token)
			}
			return
		}
		if len(mac) != 32 {
			t.Errorf("MAC of %d bytes", len(mac))
		}
		if tokens.Admit("rfs-1", token) == nil && token != tokens.Issue("rfs-1", time.Unix(int64(end), 0)) {
			t.Errorf("%q is another way to write a token", token)
		}
	})
}

func TestTokenKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token-key")
	var wg sync.WaitGroup
	keys := make([]string, 8)
	for i := range keys {
		wg.Go(func() {
			key, err := gateway.TokenKey(file)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(key)
		})
	}
	wg.Wait()
	for _, key := range keys {
		if key != keys[0] || len(key) != 32 {
			t.Fatal("the keys differ")
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.TokenKey(file); spore.CodeOf(err) != spore.CodeDamaged {
		t.Errorf("half a key: %v", err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.TokenKey(file); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("a key for all: %v", err)
	}
	if _, err := gateway.TokenKey(filepath.Join(t.TempDir(), "none", "token-key")); err == nil {
		t.Error("a key in no directory")
	}
}

func TestArtifactContent(t *testing.T) {
	e := newEdge(t)
	content := strings.Repeat("0123456789", 100)
	a := e.svc.AddArtifact(content)
	at, tag := "/v1/artifacts/"+a.ID+"/content", `"`+a.Digest+`"`
	whole := e.want(200, "GET", at, "")
	for name, want := range map[string]string{
		"ETag": tag, "Accept-Ranges": "bytes", "Content-Length": "1000", "Content-Type": "application/octet-stream",
		"Digest": "SHA-256=" + base64Digest(t, a.Digest), "Repr-Digest": "sha-256=:" + base64Digest(t, a.Digest) + ":",
	} {
		if got := whole.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if whole.body != content {
		t.Errorf("%d bytes", len(whole.body))
	}
	if head := e.want(200, "HEAD", at, "", "Range", "bytes=0-1"); head.body != "" || head.header.Get("Content-Length") != "1000" || head.header.Get("ETag") != tag {
		t.Errorf("head: %+v", head)
	}
	for _, c := range []struct {
		header []string
		status int
		body   string
		span   string
	}{
		{[]string{"Range", "bytes=0-3"}, 206, "0123", "bytes 0-3/1000"},
		{[]string{"Range", "bytes=995-"}, 206, "56789", "bytes 995-999/1000"},
		{[]string{"Range", "bytes=-5"}, 206, "56789", "bytes 995-999/1000"},
		{[]string{"Range", "bytes=-5000"}, 206, content, "bytes 0-999/1000"},
		{[]string{"Range", "bytes=998-99999999999999999999999"}, 206, "89", "bytes 998-999/1000"},
		{[]string{"Range", "BYTES=1-1"}, 206, "1", "bytes 1-1/1000"},
		{[]string{"Range", "bytes=1000-"}, 416, "", "bytes */1000"},
		{[]string{"Range", "bytes=99999999999999999999-"}, 416, "", "bytes */1000"},
		{[]string{"Range", "bytes=-0"}, 416, "", "bytes */1000"},
		{[]string{"Range", "bytes=5-2"}, 200, content, ""},
		{[]string{"Range", "bytes=0-1,4-5"}, 200, content, ""},
		{[]string{"Range", "lines=0-1"}, 200, content, ""},
		{[]string{"Range", "bytes=+1-2"}, 200, content, ""},
		{[]string{"Range", "bytes=-"}, 200, content, ""},
		{[]string{"Range", "bytes"}, 200, content, ""},
		{[]string{"Range", "bytes=995-", "If-Range", tag}, 206, "56789", "bytes 995-999/1000"},
		{[]string{"Range", "bytes=995-", "If-Range", `"sha256:0000"`}, 200, content, ""},
		{[]string{"Range", "bytes=995-", "If-Range", "W/" + tag}, 200, content, ""},
		{[]string{"Range", "bytes=2000-", "If-Range", `"another"`}, 200, content, ""},
		{[]string{"Range", "bytes=995-", "If-Range", "Sun, 01 Nov 2026 12:00:00 GMT"}, 200, content, ""},
		{[]string{"If-None-Match", tag}, 304, "", ""},
		{[]string{"If-None-Match", `"x", W/` + tag}, 304, "", ""},
		{[]string{"If-None-Match", `"x"`}, 200, content, ""},
		{[]string{"If-Match", `"x"`}, 412, "", ""},
		{[]string{"If-Match", "W/" + tag}, 412, "", ""},
		{[]string{"If-Match", `"x", ` + tag}, 200, content, ""},
		{[]string{"If-Match", "*", "Range", "bytes=0-0"}, 206, "0", "bytes 0-0/1000"},
		{[]string{"Range", strings.Repeat("x", 1025)}, 400, "", ""},
	} {
		got := e.want(c.status, "GET", at, "", c.header...)
		if got.header.Get("Content-Range") != c.span {
			t.Errorf("%q: Content-Range %q, want %q", c.header, got.header.Get("Content-Range"), c.span)
		}
		switch {
		case c.status >= 400:
			got.error(t)
		case got.body != c.body:
			t.Errorf("%q: %q", c.header, got.body)
		}
	}
	e.want(404, "GET", "/v1/artifacts/rfs-none/content", "")
	e.want(404, "HEAD", "/v1/artifacts/rfs-none/content", "")
	e.want(405, "POST", at, "")
}

func base64Digest(t *testing.T, digest string) string {
	t.Helper()
	var raw []byte
	if _, err := fmt.Sscanf(strings.TrimPrefix(digest, "sha256:"), "%x", &raw); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// TestArtifactThatBreaks reads one whose file cannot be read to its end: what came must not pass for all of it.
func TestArtifactThatBreaks(t *testing.T) {
	e := newEdge(t)
	e.svc.Fail = func(method string) error {
		if method == "OpenArtifact/read" {
			return errors.New("input/output error")
		}
		return nil
	}
	a := e.svc.AddArtifact(strings.Repeat("x", 1<<20))
	resp, err := e.Client().Get(e.URL + "/v1/artifacts/" + a.ID + "/content")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes, as if that was all", len(got))
	}
	e.Close()
	if !strings.Contains(e.log.String(), "input/output error") {
		t.Error("nobody is told why")
	}
}

// TestDownloadsDoNotHoldUpTheEnd has a client that does not read, and a server that shuts down.
func TestDownloadsDoNotHoldUpTheEnd(t *testing.T) {
	closing := make(chan struct{})
	e := newEdge(t, func(o *gateway.Options) { o.Closing = closing })
	a := e.svc.AddArtifact(strings.Repeat("x", 64<<20))
	resp, err := e.Client().Get(e.URL + "/v1/artifacts/" + a.ID + "/content")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	close(closing)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.Config.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	<-ended
}

// FuzzRange holds a part that is answered against what net/http would answer.
func FuzzRange(f *testing.F) {
	for _, seed := range []string{"bytes=0-3", "bytes=5-", "bytes=-5", "bytes=-0", "bytes=9-1", "bytes=0-1,2-3", "bytes=99999999999999999999-", "bytes= 1-2 ", "bytes=0x1-2", "Bytes=1-1", "bytes=--1", "bytes=1-2-3", "bytes=- 1"} {
		f.Add(seed, int64(10))
	}
	f.Add("bytes=0-", int64(0))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		size = max(size, -size, 0) % 4096
		start, length, part, none := gateway.ReadRange(header, size)
		if part && (start < 0 || length < 1 || start+length > size || none) {
			t.Fatalf("%q of %d: %d bytes from %d on", header, size, length, start)
		}
		set, ok := strings.CutPrefix(header, "bytes=")
		if !ok || strings.Trim(set, "0123456789-") != "" || strings.Count(set, "-") != 1 {
			return // net/http puts up with signs and spaces that do not belong there
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Range", header)
		w := httptest.NewRecorder()
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, size)))
		span := "bytes " + strconv.FormatInt(start, 10) + "-" + strconv.FormatInt(start+length-1, 10) + "/" + strconv.FormatInt(size, 10)
		if w.Code == 206 && w.Body.Len() == 0 {
			return // a part without bytes, which cannot be written as a range
		}
		switch {
		case w.Code == 206 && strings.HasPrefix(w.Header().Get("Content-Range"), "bytes ") && (!part || w.Header().Get("Content-Range") != span):
			t.Errorf("%q of %d: %s, net/http answers %s", header, size, span, w.Header().Get("Content-Range"))
		case none && w.Code != 416:
			t.Errorf("%q of %d: refused, net/http answers %d", header, size, w.Code)
		}
	})
}
