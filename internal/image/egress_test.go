package image

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	spore "github.com/sporevm/spore"
)

func egressCA(t *testing.T) (pemData []byte, fingerprint string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), hex.EncodeToString(sum[:])
}

func TestEgressCA(t *testing.T) {
	bundle := "# certificates\n"
	img := testImage(t,
		gzipLayer(t, testFiles{"etc/ssl/certs/ca-certificates.crt": bundle, "usr/local/share/ca-certificates/": ""}.tar(t)),
		gzipLayer(t, testFiles{"app": "A"}.tar(t)))
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
	s := openStore(t, Options{})
	one, fingerprint := egressCA(t)
	two, _ := egressCA(t)
	plain := mustBuild(t, s, ref, BuildOptions{}).Artifact
	baked := mustBuild(t, s, ref, BuildOptions{EgressCA: one}).Artifact
	rotated := mustBuild(t, s, ref, BuildOptions{EgressCA: two}).Artifact
	if plain.ID == baked.ID || baked.ID == rotated.ID || plain.EgressCA != nil {
		t.Errorf("ids: %s, %s, %s", plain.ID, baked.ID, rotated.ID)
	}
	if baked.EgressCA == nil || baked.EgressCA.Fingerprint != fingerprint || len(baked.EgressCA.Targets) != 2 {
		t.Errorf("egress CA: %+v", baked.EgressCA)
	}
	checkFilesystem(t, plain, testFiles{"etc/ssl/certs/ca-certificates.crt": bundle})
	checkFilesystem(t, baked, testFiles{"etc/ssl/certs/ca-certificates.crt": bundle + string(one), "app": "A"})
	if !mustBuild(t, s, ref, BuildOptions{EgressCA: append([]byte("\n"), one...)}).Reused {
		t.Error("the same certificate, written otherwise, led to a new build")
	}
	refused(t, openStore(t, Options{}), ref, BuildOptions{EgressCA: []byte("no certificate")}, spore.CodeInvalid, "egressCA")
	refused(t, openStore(t, Options{}), ref, BuildOptions{EgressCA: []byte{}}, spore.CodeInvalid, "egressCA")
}
