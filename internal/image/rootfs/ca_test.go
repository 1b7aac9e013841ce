package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/rootfs"
)

// certificate makes a self-signed one, in PEM form.
func certificate(t testing.TB, isCA bool) []byte {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "egress"},
		NotAfter: time.Now().Add(time.Hour), IsCA: isCA, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestParseCA(t *testing.T) {
	good := certificate(t, true)
	ca, err := rootfs.ParseCA(append([]byte("some words before it\n"), good...))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	if sum := sha256.Sum256(block.Bytes); ca.Fingerprint != hex.EncodeToString(sum[:]) {
		t.Errorf("fingerprint: %s", ca.Fingerprint)
	}
	for name, data := range map[string][]byte{
		"empty":       {},
		"noise":       []byte("noise"),
		"key":         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
		"two":         append(bytes.Clone(good), good...),
		"malformed":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
		"no CA":       certificate(t, false),
		"cut in half": good[:len(good)/2],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rootfs.ParseCA(data)
			if e := spore.AsError(err); spore.CodeOf(err) != spore.CodeInvalid || e.Field != "egressCA" || e.Hint == "" {
				t.Errorf("error: %#v", err)
			}
		})
	}
}

// bake flattens layers, bakes a certificate and returns the paths that were written.
func bake(t testing.TB, pemData []byte, data ...[]byte) (*rootfs.Tree, []string, error) {
	t.Helper()
	ca, err := rootfs.ParseCA(pemData)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := flatten(rootfs.Limits{}, data...)
	if err != nil {
		t.Fatal(err)
	}
	written, err := tree.BakeCA(ca, func(files []*ext4.Node) (map[*ext4.Node][]byte, error) {
		return rootfs.ReadFiles(context.Background(), files, func(i int) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[i])), nil
		})
	})
	return tree, written, err
}

func TestBakeCA(t *testing.T) {
	ca := certificate(t, true)
	other := string(certificate(t, true))
	block, _ := pem.Decode(ca)
	sum := sha256.Sum256(block.Bytes)
	anchor := "/spore-egress-" + hex.EncodeToString(sum[:8]) + ".crt"
	const debian = "etc/ssl/certs/ca-certificates.crt"
	for _, tt := range []struct {
		name   string
		layers layers
		want   []string
		bundle string // path whose content is checked
		text   string
	}{
		{"distroless", layers{{file("app", "x")}}, []string{"/" + debian}, debian, string(ca)},
		{"Debian", layers{{file(debian, other), dir("usr/local/share/ca-certificates", 0o755)}},
			[]string{"/" + debian, "/usr/local/share/ca-certificates" + anchor}, debian, other + string(ca)},
		{"Debian without its directory", layers{{file(debian, other)}, {file("usr/sbin/update-ca-certificates", "#!")}},
			[]string{"/" + debian, "/usr/local/share/ca-certificates" + anchor}, debian, other + string(ca)},
		{"no newline at the end", layers{{file(debian, strings.TrimSpace(other))}}, []string{"/" + debian}, debian, other + string(ca)},
		{"RHEL", layers{{file("etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", other), dir("etc/pki/ca-trust/source/anchors", 0o755),
			symlink("etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem")}},
			[]string{"/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/source/anchors" + anchor},
			"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", other + string(ca)},
		{"SUSE", layers{{dir("usr/share/pki/trust/anchors", 0o755)}},
			[]string{"/" + debian, "/usr/share/pki/trust/anchors" + anchor}, debian, string(ca)},
		{"already in", layers{{file(debian, other+string(ca)+other)}}, nil, debian, other + string(ca) + other},
		{"already an anchor", layers{{file(debian, other), file("usr/local/share/ca-certificates/mine.crt", string(ca))}},
			[]string{"/" + debian}, debian, other + string(ca)},
		{"anchor in DER form", layers{{file(debian, string(ca)), file("etc/pki/ca-trust/source/anchors/mine.der", string(block.Bytes))}},
			nil, debian, string(ca)},
		{"dangling bundle", layers{{symlink(debian, "/nowhere/at/all")}}, []string{"/" + debian}, debian, string(ca)},
		{"bundle is a directory", layers{{dir(debian, 0o755)}}, nil, "", ""},
		{"certificates behind a symlink", layers{{symlink("etc/ssl", "../usr/ssl"), dir("usr/ssl", 0o755)}}, []string{"/" + debian}, "usr/ssl/certs/ca-certificates.crt", string(ca)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var data [][]byte
			for _, l := range tt.layers {
				data = append(data, tarOf(t, l...))
			}
			tree, written, err := bake(t, ca, data...)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(written, tt.want) {
				t.Errorf("written: %q, want %q", written, tt.want)
			}
			if tt.bundle != "" && !strings.Contains(list(t, tree, data...)+"\n", tt.bundle+": "+tt.text) {
				t.Errorf("%s does not hold what it should", tt.bundle)
			}
		})
	}
}

func TestBakeCARefusesHugeBundle(t *testing.T) {
	layer := tarOf(t, file("etc/ssl/certs/ca-certificates.crt", strings.Repeat("#", 9<<20)))
	if _, _, err := bake(t, certificate(t, true), layer); spore.CodeOf(err) != spore.CodeInvalid {
		t.Errorf("error: %v", err)
	}
}

// FuzzBakeCA bakes into a bundle and an anchor of arbitrary content, and bakes again: the second time nothing is written.
func FuzzBakeCA(f *testing.F) {
	ca := certificate(f, true)
	f.Add(ca, []byte("noise"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"), ca[:20])
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, bundle, anchor []byte) {
		if _, err := rootfs.ParseCA(bundle); err != nil && spore.CodeOf(err) != spore.CodeInvalid {
			t.Fatal(err)
		}
		const path = "etc/ssl/certs/ca-certificates.crt"
		layer := tarOf(t, file(path, string(bundle)), file("usr/local/share/ca-certificates/a.crt", string(anchor)))
		tree, _, err := bake(t, ca, layer)
		if err != nil {
			t.Fatal(err)
		}
		img, _, err := image(tree, layer)
		if err != nil {
			t.Fatal(err)
		}
		baked := read(img, tree.Root.Children["etc"].Children["ssl"].Children["certs"].Children["ca-certificates.crt"])
		if !bytes.HasPrefix(baked, bundle) || !bytes.Contains(baked, ca) {
			t.Fatal("the bundle lost something")
		}
		again := []*tar.Header{file(path, string(baked)), file("usr/local/share/ca-certificates/b.crt", string(ca))}
		if _, written, err := bake(t, ca, tarOf(t, again...)); err != nil || len(written) > 0 {
			t.Fatalf("baked twice: %v, %v", written, err)
		}
	})
}
