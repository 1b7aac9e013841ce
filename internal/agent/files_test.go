package agent

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// do makes a request and returns its answer whole.
func (b *bed) do(t *testing.T, method, target string, body io.Reader, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, b.url+target, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, data
}

func filesAt(path string) string { return "/files?path=" + url.QueryEscape(path) }

var octets = map[string]string{"Content-Type": "application/octet-stream"}

func gzipped(data string) *bytes.Buffer {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, data)
	z.Close()
	return &b
}

func TestUploadAndDownload(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "new/sub/a file")
	res, body := b.do(t, "POST", filesAt(path), strings.NewReader("hello"), octets)
	var files []written
	if err := json.Unmarshal(body, &files); res.StatusCode != 200 || err != nil || len(files) != 1 || files[0].Path != path || files[0].Type != "file" || files[0].Name != "a file" {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if res, body := b.do(t, "GET", filesAt(path), nil, nil); res.StatusCode != 200 || string(body) != "hello" || res.ContentLength != 5 {
		t.Fatalf("%d %q", res.StatusCode, body)
	}
	if res, body := b.do(t, "GET", filesAt(path), nil, map[string]string{"Range": "bytes=1-3"}); res.StatusCode != 206 || string(body) != "ell" {
		t.Fatalf("%d %q", res.StatusCode, body)
	}
	res, body = b.do(t, "GET", filesAt(path), nil, map[string]string{"Accept-Encoding": "gzip"})
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil || res.Header.Get("Content-Encoding") != "gzip" {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || string(plain) != "hello" {
		t.Fatalf("%q, %v", plain, err)
	}
	// A link is written through, and the mode of what was there stays.
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Symlink(path, link), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if res, body := b.do(t, "POST", filesAt(link), gzipped("packed"), map[string]string{"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}); res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "packed" {
		t.Fatalf("%q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Fatal(info, err)
	}
	if res, body := b.do(t, "GET", filesAt(filepath.Join(dir, "empty")), nil, nil); res.StatusCode != 404 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if res, body := b.do(t, "GET", filesAt(filepath.Join(dir, "empty")), nil, nil); res.StatusCode != 200 || len(body) != 0 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
}

func TestUploadForm(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	for _, name := range []string{"one", "deep/er/two"} {
		part, err := w.CreateFormFile("file", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(part, name)
	}
	w.Close()
	res, body := b.do(t, "POST", "/files", bytes.NewReader(form.Bytes()), map[string]string{"Content-Type": w.FormDataContentType()})
	if res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	for _, name := range []string{"one", "deep/er/two"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != name {
			t.Errorf("%q, %v", got, err)
		}
	}
	// A form that breaks off leaves nothing.
	cut := form.Bytes()[:form.Len()-form.Len()/3]
	sub := filepath.Join(dir, "cut")
	cut = bytes.ReplaceAll(cut, []byte(dir), []byte(sub))
	res, body = b.do(t, "POST", "/files", bytes.NewReader(cut), map[string]string{"Content-Type": w.FormDataContentType()})
	if res.StatusCode != 400 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil || isStaged(path) {
			t.Errorf("%s, %v", path, err)
		}
		return nil
	})
}

func TestUploadErrors(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "plain"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, target, body string
		header             map[string]string
		status             int
	}{
		{"directory", filesAt(dir), "x", octets, 400},
		{"slash at the end", filesAt(dir + "/no/"), "x", octets, 400},
		{"below a file", filesAt(dir + "/plain/below"), "x", octets, 400},
		{"no path", "/files", "x", octets, 400},
		{"zero byte", filesAt("a\x00b"), "x", octets, 400},
		{"no content type", filesAt(dir + "/a"), "x", nil, 400},
		{"not gzip", filesAt(dir + "/a"), "x", map[string]string{"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}, 400},
		{"unknown coding", filesAt(dir + "/a"), "x", map[string]string{"Content-Type": "application/octet-stream", "Content-Encoding": "br"}, 415},
		{"unknown user", filesAt(dir+"/a") + "&username=nosuchuser", "x", octets, 400},
		{"name too long", filesAt(dir + "/" + strings.Repeat("a", 300)), "x", octets, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := b.do(t, "POST", c.target, strings.NewReader(c.body), c.header)
			var p problem
			if err := json.Unmarshal(body, &p); res.StatusCode != c.status || err != nil || p.Code != c.status || p.Message == "" {
				t.Fatalf("%d %s", res.StatusCode, body)
			}
		})
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if res, _ := b.do(t, "GET", filesAt(dir), nil, nil); res.StatusCode != 400 {
		t.Fatal(res.Status)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("small", dir, "tmpfs", 0, "size=1M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	b := newBed(t)
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	res, body := b.do(t, "POST", filesAt(path), bytes.NewReader(make([]byte, 4<<20)), octets)
	if res.StatusCode != http.StatusInsufficientStorage {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "before" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestMetricsAndEnvs(t *testing.T) {
	b := newBed(t)
	var m Metrics
	if _, body := b.do(t, "GET", "/metrics", nil, nil); json.Unmarshal(body, &m) != nil || m.CPUCount < 1 || m.MemTotal < m.MemUsed || m.MemUsed == 0 || m.DiskTotal == 0 || m.CPUUsedPct < 0 || m.CPUUsedPct > 100 {
		t.Fatalf("%s", body)
	}
	b.agent.settings.merge(map[string]string{"A": "1"})
	if _, body := b.do(t, "GET", "/envs", nil, nil); string(body) != `{"A":"1"}` {
		t.Fatalf("%s", body)
	}
	if res, _ := b.do(t, "GET", "/health", nil, nil); res.StatusCode != 204 {
		t.Fatal(res.Status)
	}
}

func TestIdentity(t *testing.T) {
	b := newBed(t)
	post := func(v any) (*http.Response, []byte) {
		t.Helper()
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b.do(t, "POST", "/init", bytes.NewReader(data), nil)
	}
	id := Identity{SandboxID: "s1", Hostname: "box", MachineID: strings.Repeat("ab", 16), Entropy: []byte("random"), UnixNano: 12345, Env: map[string]string{"K": "v"}, DropConnections: true}
	res, body := post(id)
	var f Facts
	if err := json.Unmarshal(body, &f); err != nil || res.StatusCode != 200 || f.BootID != "boot" || f.Dropped != 3 || f.Agent != Version {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if b.system.hostname != "box" || b.system.machineID != id.MachineID || string(b.system.entropy) != "random" || b.system.clock.UnixNano() != 12345 {
		t.Fatalf("%+v", b.system)
	}
	if env := b.agent.settings.environ(); env["K"] != "v" || env["SPORE_SANDBOX_ID"] != "s1" {
		t.Fatal(env)
	}
	for _, bad := range []Identity{{Hostname: "a b"}, {Hostname: "a\nb"}, {MachineID: "xyz"}, {Env: map[string]string{"A=": ""}}} {
		if res, body := post(bad); res.StatusCode != 400 {
			t.Errorf("%+v: %d %s", bad, res.StatusCode, body)
		}
	}
	if res, _ := b.do(t, "POST", "/init", strings.NewReader("{"), nil); res.StatusCode != 400 {
		t.Error(res.Status)
	}
	b.system.fail = errors.New("no")
	if res, body := post(id); res.StatusCode != 500 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

func TestConfigure(t *testing.T) {
	b := newBed(t)
	post := func(body string) (*http.Response, []byte) {
		t.Helper()
		return b.do(t, "POST", "/configure", strings.NewReader(body), nil)
	}
	for _, bad := range []string{`{"stopSignal":"SIGNOPE"}`, `{"env":["=x"]}`, `{"user":"nosuchuser"}`, `{"workingDir":"rel"}`, `[]`} {
		if res, body := post(bad); res.StatusCode != 400 {
			t.Errorf("%s: %d %s", bad, res.StatusCode, body)
		}
	}
	dir := filepath.Join(t.TempDir(), "made")
	config := fmt.Sprintf(`{"cmd":["sh","-c","echo hi; pwd; exit 4"],"env":["A=b=c"],"workingDir":%q,"stopSignal":"quit"}`, dir)
	if res, body := post(config); res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if res, _ := post(config); res.StatusCode != 409 {
		t.Fatal(res.Status)
	}
	_, logs := b.do(t, "GET", "/logs?follow=true", nil, nil)
	if want := "hi\n" + dir + "\n[the image's command has ended: exit status 4]\n"; string(logs) != want {
		t.Fatalf("%q", logs)
	}
	if _, tail := b.do(t, "GET", "/logs?tail=3", nil, nil); string(tail) != "4]\n" {
		t.Fatalf("%q", tail)
	}
	var s Status
	for s.Entrypoint.State != EntrypointExited {
		if _, body := b.do(t, "GET", "/status", nil, nil); json.Unmarshal(body, &s) != nil {
			t.Fatalf("%s", body)
		}
	}
	if s.Entrypoint.ExitCode != 4 || !s.Configured {
		t.Fatalf("%+v", s)
	}
	if res, _ := b.do(t, "POST", "/poweroff", strings.NewReader(`{"graceMs":10}`), nil); res.StatusCode != 202 {
		t.Fatal(res.Status)
	}
	if r := <-b.off; r.GraceMS != 10 {
		t.Fatal(r)
	}
	if res, _ := b.do(t, "POST", "/quiesce", nil, nil); res.StatusCode != 204 || b.system.synced != 1 {
		t.Fatal(res.Status)
	}
}

func TestConfigureWithoutCommandOrWithABadOne(t *testing.T) {
	b := newBed(t)
	if res, body := b.do(t, "POST", "/configure", strings.NewReader(`{}`), nil); res.StatusCode != 200 || !strings.Contains(string(body), EntrypointNone) {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	b = newBed(t)
	if res, body := b.do(t, "POST", "/configure", strings.NewReader(`{"entrypoint":["/no/such"]}`), nil); res.StatusCode != 404 || !strings.Contains(string(body), "/no/such") {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	var s Status
	if _, body := b.do(t, "GET", "/status", nil, nil); json.Unmarshal(body, &s) != nil || s.Entrypoint.State != EntrypointFailed || s.Entrypoint.Error == "" {
		t.Fatalf("%s", body)
	}
}

func TestLogIsBounded(t *testing.T) {
	l := newLog(filepath.Join(t.TempDir(), "log"))
	line := bytes.Repeat([]byte("x"), 1000)
	for range 4000 {
		l.Write(line)
	}
	data, start, _ := l.from(0)
	if len(data) != logMemory || start != 4_000_000-logMemory || cap(l.buf) > 8*logMemory {
		t.Fatal(len(data), start, cap(l.buf))
	}
	for _, name := range []string{l.path, l.path + ".1"} {
		if info, err := os.Stat(name); err != nil || info.Size() > logOnDisk {
			t.Fatal(info, err)
		}
	}
}
