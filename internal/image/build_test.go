package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// noise returns text that does not compress.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(b)
	return string(b)
}

func TestBuildFromEverySource(t *testing.T) {
	lower := testFiles{"app": "program", "etc/conf": "old"}
	upper := testFiles{"etc/conf": "new", "big": noise(1, 300_000)}
	img := testImage(t, gzipLayer(t, lower.tar(t)), gzipLayer(t, upper.tar(t)))
	oci := writeLayout(t, map[string]v1.Image{"v1": img})
	host := startRegistry(t)
	push(t, host+"/app:v1", img)
	manifest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	configDigest, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	archive := tarDir(t, oci)
	docker := dockerSave(t, false, map[string]v1.Image{"example/app:v1": img})
	packed := dockerSave(t, true, map[string]v1.Image{"example/app:v1": img})
	var first *Result
	for _, ref := range []string{
		host + "/app:v1", host + "/app@" + manifest.String(), "oci:" + oci, "oci:" + oci + ":v1", "oci-archive:" + archive, "oci-archive:" + archive + ":v1",
		"docker-archive:" + docker, "docker-archive:" + docker + ":app:v1", "docker-archive:" + packed + ":v1",
	} {
		t.Run(strings.ReplaceAll(ref, "/", "_"), func(t *testing.T) {
			s := openStore(t, Options{})
			r := mustBuild(t, s, ref, BuildOptions{})
			if first == nil {
				first = r
			}
			if r.Reused || r.Artifact.ID != first.Artifact.ID || r.Artifact.Digest != first.Artifact.Digest {
				t.Errorf("artifact %+v differs from %+v", r.Artifact, first.Artifact)
			}
			if r.Image.Reference != ref || r.Image.ConfigDigest != configDigest.String() || r.Image.Platform != "linux/"+runtime.GOARCH {
				t.Errorf("image: %+v", r.Image)
			}
			want := Config{
				Entrypoint: []string{"/app"}, Cmd: []string{"--help"}, Env: []string{"A=b"}, User: "7", WorkingDir: "/w", StopSignal: "SIGINT",
				ExposedPorts: []string{"80/tcp"}, Labels: map[string]string{"l": "v"}, Volumes: []string{"/data"},
			}
			if !reflect.DeepEqual(r.Config, want) || !r.Config.HasCommand() {
				t.Errorf("config: %+v", r.Config)
			}
			checkFilesystem(t, r.Artifact, testFiles{"app": "program", "etc/conf": "new", "big": upper["big"]})
			data, err := os.ReadFile(r.Artifact.Path)
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(data); r.Artifact.Digest != "sha256:"+hex.EncodeToString(sum[:]) || r.Artifact.SizeBytes != int64(len(data)) {
				t.Errorf("digest or size of the file differ from the record")
			}
			again := mustBuild(t, s, ref, BuildOptions{})
			if !again.Reused || !reflect.DeepEqual(again.Artifact, r.Artifact) || !reflect.DeepEqual(again.Config, r.Config) {
				t.Errorf("second build: %+v", again.Artifact)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left in tmp: %q", left)
			}
		})
	}
}

func TestCompressions(t *testing.T) {
	data := testFiles{"a": "A", "noise": noise(2, 400_000)}.tar(t)
	for name, l := range map[string]v1.Layer{
		"zstd":         zstdLayer(t, data),
		"gzip":         gzipLayer(t, data),
		"uncompressed": rawLayer(t, data, data, types.OCIUncompressedLayer),
	} {
		t.Run(name, func(t *testing.T) {
			r := mustBuild(t, openStore(t, Options{}), "oci:"+writeLayout(t, map[string]v1.Image{"": testImage(t, l)}), BuildOptions{})
			checkFilesystem(t, r.Artifact, testFiles{"a": "A"})
		})
	}
}

func TestBuildIsReproducible(t *testing.T) {
	var layers []v1.Layer
	for i := range 4 {
		files := testFiles{}
		for j := range 100 {
			files[fmt.Sprintf("d%d/f%d", j%7, i*150+j)] = noise(uint64(i*1000+j), j*60)
		}
		layers = append(layers, gzipLayer(t, files.tar(t)))
	}
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": testImage(t, layers...)})
	var digest string
	for _, procs := range []int{0, 1, 7} {
		before := runtime.GOMAXPROCS(procs)
		r := mustBuild(t, openStore(t, Options{}), ref, BuildOptions{})
		runtime.GOMAXPROCS(before)
		if digest == "" {
			digest = r.Artifact.Digest
			checkFilesystem(t, r.Artifact, nil)
		}
		if r.Artifact.Digest != digest {
			t.Errorf("with %d threads the digest is %s, not %s", procs, r.Artifact.Digest, digest)
		}
	}
}

// countingRegistry serves a registry and counts the downloads of each blob.
func countingRegistry(t *testing.T) (host string, blobs *sync.Map, requests *atomic.Int64) {
	backend, err := url.Parse("http://" + startRegistry(t))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(backend)
	blobs, requests = &sync.Map{}, &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/") {
			requests.Add(1)
		}
		if i := strings.LastIndex(r.URL.Path, "/blobs/sha256:"); i > 0 && r.Method == http.MethodGet {
			n, _ := blobs.LoadOrStore(r.URL.Path[i+7:], &atomic.Int64{})
			n.(*atomic.Int64).Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), blobs, requests
}

func TestNothingIsDownloadedTwice(t *testing.T) {
	host, blobs, requests := countingRegistry(t)
	shared := gzipLayer(t, testFiles{"shared": noise(3, 100_000)}.tar(t))
	push(t, host+"/one:v1", testImage(t, shared, gzipLayer(t, testFiles{"one": "1"}.tar(t))))
	push(t, host+"/two:v1", testImage(t, shared, gzipLayer(t, testFiles{"two": "2"}.tar(t))))
	s := openStore(t, Options{})
	var wg sync.WaitGroup
	var ids sync.Map
	for i := range 6 {
		wg.Go(func() {
			ref := host + []string{"/one:v1", "/two:v1"}[i%2]
			r, err := s.Build(context.Background(), ref, BuildOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			ids.Store(ref, r.Artifact.ID)
		})
	}
	wg.Wait()
	blobs.Range(func(digest, n any) bool {
		if got := n.(*atomic.Int64).Load(); got != 1 {
			t.Errorf("%s was downloaded %d times", digest, got)
		}
		return true
	})
	requests.Store(0)
	if r := mustBuild(t, s, host+"/one:v1", BuildOptions{}); !r.Reused {
		t.Error("an unchanged image was built again")
	}
	if n := requests.Load(); n > 2 { // the ping, and the question for the digest
		t.Errorf("an unchanged image took %d requests", n)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Errorf("artifacts: %v, %v", list, err)
	}
}

func TestImagesThatShareAnArtifact(t *testing.T) {
	l := gzipLayer(t, testFiles{"a": "A"}.tar(t))
	one := testImage(t, l)
	two := testImage(t, rawLayer(t, testFiles{"a": "A"}.tar(t), testFiles{"a": "A"}.tar(t), types.OCIUncompressedLayer))
	s := openStore(t, Options{})
	a := mustBuild(t, s, "oci:"+writeLayout(t, map[string]v1.Image{"": one}), BuildOptions{})
	b := mustBuild(t, s, "oci:"+writeLayout(t, map[string]v1.Image{"": two}), BuildOptions{})
	if a.Artifact.ID != b.Artifact.ID || !b.Reused || a.Image.ManifestDigest == b.Image.ManifestDigest {
		t.Errorf("%+v, %+v", a.Image, b.Image)
	}
	records, err := s.Images(a.Artifact.ID)
	if err != nil || len(records) != 2 || len(records[0].Blobs) != 3 || !records[0].Config.HasCommand() {
		t.Errorf("records: %+v, %v", records, err)
	}
}

func TestProgress(t *testing.T) {
	img := testImage(t, gzipLayer(t, testFiles{"a": noise(4, 500_000)}.tar(t)), gzipLayer(t, testFiles{"b": "B"}.tar(t)))
	var seen []Progress
	mustBuild(t, openStore(t, Options{}), "oci:"+writeLayout(t, map[string]v1.Image{"": img}), BuildOptions{Progress: func(p Progress) { seen = append(seen, p) }})
	last := map[Phase]Progress{}
	var order []Phase
	for _, p := range seen {
		if before, ok := last[p.Phase]; !ok {
			order = append(order, p.Phase)
		} else if p.BytesDone < before.BytesDone || p.LayersDone < before.LayersDone || p.BytesDone > p.BytesTotal {
			t.Errorf("%+v after %+v", p, before)
		}
		last[p.Phase] = p
	}
	if !reflect.DeepEqual(order, []Phase{PhasePulling, PhaseUnpacking, PhaseBuilding}) {
		t.Errorf("phases: %v", order)
	}
	for phase, p := range last {
		if p.LayersDone != p.LayersTotal || p.BytesDone != p.BytesTotal || p.BytesTotal == 0 {
			t.Errorf("%s ends at %+v", phase, p)
		}
	}
}

func TestCancel(t *testing.T) {
	img := testImage(t, gzipLayer(t, testFiles{"a": noise(5, 2_000_000)}.tar(t)))
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
	for _, phase := range []Phase{PhasePulling, PhaseUnpacking, PhaseBuilding} {
		t.Run(string(phase), func(t *testing.T) {
			s := openStore(t, Options{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			_, err := s.Build(ctx, ref, BuildOptions{Progress: func(p Progress) {
				if p.Phase == phase {
					cancel()
				}
			}})
			if err == nil || ctx.Err() == nil {
				t.Fatalf("error: %v", err)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left in tmp: %q", left)
			}
			if list, err := s.List(); len(list) > 0 || err != nil {
				t.Errorf("artifacts: %v, %v", list, err)
			}
			mustBuild(t, s, ref, BuildOptions{})
		})
	}
}

func TestImagesWithLittleInThem(t *testing.T) {
	s := openStore(t, Options{})
	bare := testImage(t)
	config, err := bare.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Config = v1.Config{}
	if bare, err = mutate.ConfigFile(bare, config); err != nil {
		t.Fatal(err)
	}
	r := mustBuild(t, s, "oci:"+writeLayout(t, map[string]v1.Image{"": bare}), BuildOptions{})
	if r.Config.HasCommand() {
		t.Errorf("config: %+v", r.Config)
	}
	checkFilesystem(t, r.Artifact, nil)
}

// TestBrokenDownloadIsTriedAgain cuts the first download of each layer in its middle.
func TestBrokenDownloadIsTriedAgain(t *testing.T) {
	host := startRegistry(t)
	push(t, host+"/app:v1", testImage(t, gzipLayer(t, testFiles{"a": noise(12, 200_000)}.tar(t))))
	var cut sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, again := cut.LoadOrStore(r.URL.Path, true); again || !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			proxyTo(host, w, r)
			return
		}
		w.Header().Set("Content-Length", "100000")
		w.Write(make([]byte, 1000))
		panic(http.ErrAbortHandler)
	}))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s := openStore(t, Options{})
	r := mustBuild(t, s, strings.TrimPrefix(server.URL, "http://")+"/app:v1", BuildOptions{})
	if err := s.Verify(context.Background(), r.Artifact.ID); err != nil {
		t.Error(err)
	}
}
