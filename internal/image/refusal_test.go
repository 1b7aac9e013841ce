package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// refused builds an image that cannot be built, and checks the error and that nothing is left of the attempt.
func refused(t *testing.T, s *Store, ref string, o BuildOptions, code spore.Code, words ...string) {
	t.Helper()
	_, err := s.Build(context.Background(), ref, o)
	if spore.CodeOf(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, spore.CodeOf(err), code)
	}
	e := spore.AsError(err)
	for _, w := range words {
		if !strings.Contains(e.Error()+" | "+e.Hint, w) {
			t.Errorf("%q does not say %q (hint %q)", e.Error(), w, e.Hint)
		}
	}
	if e.Hint == "" {
		t.Errorf("%v has no hint", err)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %q", left)
	}
	if entries, err := os.ReadDir(filepath.Join(s.dir, "artifacts")); err != nil || len(entries) > 0 {
		t.Errorf("left of artifacts: %v, %v", entries, err)
	}
}

func TestLocalRefusals(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))
	two := testImage(t, gzipLayer(t, testFiles{"b": "B"}.tar(t)))
	both := writeLayout(t, map[string]v1.Image{"v1": one, "v2": two})
	good := tarDir(t, both)
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	docker := dockerSave(t, false, map[string]v1.Image{"a:v1": one, "b:v2": two})
	var other bytes.Buffer
	w := tar.NewWriter(&other)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "readme"}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	s := openStore(t, Options{})
	for name, tt := range map[string]struct {
		ref   string
		code  spore.Code
		words []string
	}{
		"no directory":         {"oci:" + dir + "/none", spore.CodeNotFound, []string{"does not exist"}},
		"file as directory":    {"oci:" + good, spore.CodeInvalid, []string{"not a directory", "oci-archive:"}},
		"no layout":            {"oci:" + dir, spore.CodeInvalid, []string{"index.json"}},
		"several images":       {"oci:" + both, spore.CodeInvalid, []string{"several", "v1, v2"}},
		"unknown tag":          {"oci:" + both + ":v3", spore.CodeNotFound, []string{"v3", "v1, v2"}},
		"no archive":           {"oci-archive:" + dir + "/none", spore.CodeNotFound, []string{"does not exist"}},
		"empty archive":        {"oci-archive:" + write("empty", ""), spore.CodeInvalid, []string{"is empty"}},
		"noise":                {"oci-archive:" + write("noise", strings.Repeat("noise", 1000)), spore.CodeInvalid, []string{"not a complete tar"}},
		"cut archive":          {"oci-archive:" + write("cut", string(data[:len(data)/2-100])), spore.CodeInvalid, []string{"not a complete tar"}},
		"gzip archive":         {"oci-archive:" + write("gz", "\x1f\x8b\x08\x00"), spore.CodeInvalid, []string{"gzip", "decompress"}},
		"directory as archive": {"docker-archive:" + dir, spore.CodeInvalid, []string{"not a regular file"}},
		"other tar":            {"docker-archive:" + write("other", other.String()), spore.CodeInvalid, []string{"manifest.json"}},
		"OCI as docker":        {"docker-archive:" + good, spore.CodeInvalid, []string{"oci-archive:"}},
		"docker as OCI":        {"oci-archive:" + docker, spore.CodeInvalid, []string{"docker-archive:"}},
		"several in docker":    {"docker-archive:" + docker, spore.CodeInvalid, []string{"several", "a:v1, b:v2"}},
		"unknown docker tag":   {"docker-archive:" + docker + ":v3", spore.CodeNotFound, []string{"a:v1"}},
		"empty":                {"", spore.CodeInvalid, []string{"empty"}},
		"dash":                 {"-x", spore.CodeInvalid, []string{"dash"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, s, tt.ref, BuildOptions{}, tt.code, tt.words...) })
	}
}

// withBlob replaces a blob of a layout.
func withBlob(t *testing.T, layout, digest string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}

func TestDamagedImages(t *testing.T) {
	data := testFiles{"a": noise(6, 10000)}.tar(t)
	img := testImage(t, gzipLayer(t, data))
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		digest string
		change func([]byte) []byte
		code   spore.Code
		want   string
	}{
		"flipped layer":    {layer.String(), flip, spore.CodeDamaged, "layer " + layer.String() + " has the digest"},
		"short layer":      {layer.String(), func(b []byte) []byte { return b[:100] }, spore.CodeDamaged, "has 100 bytes instead of"},
		"long layer":       {layer.String(), func(b []byte) []byte { return append(b, 0) }, spore.CodeDamaged, "is longer than"},
		"flipped manifest": {manifest.String(), flip, spore.CodeDamaged, manifest.String()},
		"flipped config":   {config.String(), flip, spore.CodeDamaged, config.String()},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			withBlob(t, dir, tt.digest, tt.change)
			refused(t, openStore(t, Options{}), "oci:"+dir, BuildOptions{}, tt.code, tt.want)
		})
	}

	gz, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	packed, err := io.ReadAll(gz)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		layer v1.Layer
		code  spore.Code
		want  string
	}{
		"wrong diff id":    {rawLayer(t, packed, []byte("other"), types.OCILayer), spore.CodeDamaged, "when uncompressed, but the image's config says"},
		"mislabelled":      {rawLayer(t, data, data, types.OCILayer), spore.CodeDamaged, "cannot be decompressed"},
		"mislabelled zstd": {rawLayer(t, packed, data, types.OCILayerZStd), spore.CodeDamaged, "cannot be decompressed"},
		"cut gzip":         {rawLayer(t, packed[:len(packed)-5000], data, types.OCILayer), spore.CodeDamaged, "cannot be decompressed"},
		"no tar":           {rawLayer(t, []byte(noise(1, 5000)), []byte(noise(1, 5000)), types.OCIUncompressedLayer), spore.CodeInvalid, "not a valid tar archive"},
		"cut tar":          {rawLayer(t, data[:5000], data[:5000], types.OCIUncompressedLayer), spore.CodeInvalid, "cut short"},
		"unknown type":     {rawLayer(t, data, data, "application/x-zip"), spore.CodeInvalid, "unknown type"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeLayout(t, map[string]v1.Image{"": testImage(t, tt.layer)})
			refused(t, openStore(t, Options{}), "oci:"+dir, BuildOptions{}, tt.code, tt.want)
		})
	}
}

func TestHostileImages(t *testing.T) {
	for name, tt := range map[string]struct {
		files  testFiles
		limits rootfs.Limits
		want   []string
	}{
		"climbing":   {testFiles{"../../../../tmp/spore-escape": "x"}, rootfs.Limits{}, []string{"layer sha256:", `entry "../../../../tmp/spore-escape"`}},
		"too large":  {testFiles{"a": strings.Repeat("\x00", 1<<20)}, rootfs.Limits{LayerBytes: 1 << 19}, []string{"more than the allowed 524288 bytes"}},
		"many files": {testFiles{"a": "", "b": "", "c": ""}, rootfs.Limits{Entries: 2}, []string{"more than the allowed 2 entries"}},
	} {
		t.Run(name, func(t *testing.T) {
			ref := "oci:" + writeLayout(t, map[string]v1.Image{"": testImage(t, gzipLayer(t, tt.files.tar(t)))})
			refused(t, openStore(t, Options{Limits: tt.limits}), ref, BuildOptions{}, spore.CodeInvalid, tt.want...)
		})
	}
	if _, err := os.Stat("/tmp/spore-escape"); err == nil {
		t.Error("a layer has written outside")
	}
}

func TestPlatforms(t *testing.T) {
	here := testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))
	there := platformImage(t, "s390x", gzipLayer(t, testFiles{"b": "B"}.tar(t)))
	host := startRegistry(t)
	index := func(images ...v1.Image) v1.ImageIndex {
		idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
		for _, img := range images {
			config, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: config.Platform()}})
		}
		return mutate.AppendManifests(idx, mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	}
	for tag, idx := range map[string]v1.ImageIndex{"both": index(there, here), "there": index(there)} {
		ref, err := name.ParseReference(host + "/p:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref, idx); err != nil {
			t.Fatal(err)
		}
	}
	push(t, host+"/p:alone", there)
	s := openStore(t, Options{})
	refused(t, s, host+"/p:there", BuildOptions{}, spore.CodeInvalid, "not available for linux/", "linux/s390x")
	refused(t, s, host+"/p:alone", BuildOptions{}, spore.CodeInvalid, "not available for linux/", "linux/s390x")
	r := mustBuild(t, s, host+"/p:both", BuildOptions{})
	want, err := here.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if r.Image.ManifestDigest != want.String() {
		t.Errorf("manifest: %s, want %s", r.Image.ManifestDigest, want)
	}
	checkFilesystem(t, r.Artifact, testFiles{"a": "A"})
}

func TestRegistryRefusals(t *testing.T) {
	host := startRegistry(t)
	push(t, host+"/app:v1", testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t))))
	s := openStore(t, Options{})
	refused(t, s, host+"/app:v2", BuildOptions{}, spore.CodeNotFound, "check the image's name")
	refused(t, s, host+"/none:v1", BuildOptions{}, spore.CodeNotFound, "/none:v1")

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().String()
	listener.Close()
	refused(t, s, closed+"/app:v1", BuildOptions{}, spore.CodeUnreachable, "cannot be reached")

	for status, tt := range map[int]struct {
		code spore.Code
		want string
	}{
		http.StatusUnauthorized:    {spore.CodeNotFound, "docker login"},
		http.StatusForbidden:       {spore.CodeNotFound, "docker login"},
		http.StatusTeapot:          {spore.CodeUnreachable, "418"},
		http.StatusTooManyRequests: {spore.CodeBusy, "fewer requests"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			w.WriteHeader(status)
		}))
		refused(t, s, strings.TrimPrefix(server.URL, "http://")+"/app:v1", BuildOptions{}, tt.code, tt.want)
		server.Close()
	}
}

func TestCredentials(t *testing.T) {
	host := startRegistry(t)
	img := testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))
	push(t, host+"/app:v1", img)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		proxyTo(host, w, r)
	}))
	defer server.Close()
	guarded := strings.TrimPrefix(server.URL, "http://")

	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("REGISTRY_AUTH_FILE", "")
	s := openStore(t, Options{Keychain: authn.DefaultKeychain})
	refused(t, s, guarded+"/app:v1", BuildOptions{}, spore.CodeNotFound, "docker login")
	for _, path := range []string{".docker/config.json", ".config/containers/auth.json"} {
		file := filepath.Join(home, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(`{"auths":{"`+guarded+`":{"auth":"bWU6c2VjcmV0"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		mustBuild(t, openStore(t, Options{}), guarded+"/app:v1", BuildOptions{})
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

func proxyTo(host string, w http.ResponseWriter, r *http.Request) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+host+r.URL.Path, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	req.Header = r.Header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	io.Copy(w, resp.Body)
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	guard := &schemeGuard{next: roundTrip(func(*http.Request) (*http.Response, error) { return &http.Response{}, nil })}
	for url, allowed := range map[string]bool{
		"http://127.0.0.1:5000/v2/": true, "http://localhost/v2/": true, "http://[::1]:1/": true, "https://10.0.0.1/": true,
		"http://10.0.0.1:5000/v2/": false, "http://example.com/": false, "http://localhost.example.com/": false,
	} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guard.RoundTrip(req); (err == nil) != allowed {
			t.Errorf("%s: %v", url, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestEmbeddedDocumentsAreVerified(t *testing.T) {
	img := testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))
	dir := writeLayout(t, map[string]v1.Image{"": img})
	path := filepath.Join(dir, "index.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// "data" of a descriptor may hold the document; here it holds another one.
	forged := strings.Replace(string(data), `"digest"`, `"data":"e30=","digest"`, 1)
	if err := os.WriteFile(path, []byte(forged), 0o600); err != nil {
		t.Fatal(err)
	}
	mustBuild(t, openStore(t, Options{}), "oci:"+dir, BuildOptions{})
}
