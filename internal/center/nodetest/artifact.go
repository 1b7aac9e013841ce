package nodetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
)

func testArtifact(t *testing.T, fresh func(*testing.T) *bed) {
	t.Run("Resolve", func(t *testing.T) {
		b := fresh(t)
		said, err := b.Node.ResolveArtifact(t.Context(), b.Image)
		b.must(err)
		b.want(b.Node.VerifyArtifact(t.Context(), said.ID, false), spore.CodeNotFound)
		_, err = b.Node.OpenArtifact(t.Context(), said.ID)
		b.want(err, spore.CodeNotFound)
		if items := b.garbage(); len(items) > 0 {
			t.Fatalf("resolving left %v", items)
		}
		made := b.artifact()
		if said.ID != made.ID || said.Image != made.Image || !cmp.Equal(said.Process, made.Process) || made.EgressCA.Baked {
			t.Fatalf("resolved as %+v and built as %+v", said, made)
		}
	})

	t.Run("EgressCA", func(t *testing.T) {
		b := fresh(t)
		plain := b.artifact()
		spec := b.Image
		spec.EgressCA = certificate(t)
		said, err := b.Node.ResolveArtifact(t.Context(), spec)
		b.must(err)
		made, err := b.Node.BuildArtifact(t.Context(), spec, quiet)
		b.must(err)
		if made.ID == plain.ID || said.ID != made.ID || !said.EgressCA.Baked || said.EgressCA.Fingerprint != made.EgressCA.Fingerprint {
			t.Fatalf("without: %s; with: resolved as %s %+v and built as %s %+v", plain.ID, said.ID, said.EgressCA, made.ID, made.EgressCA)
		}
		spec.EgressCA = []byte("no certificate")
		_, err = b.Node.ResolveArtifact(t.Context(), spec)
		b.want(err, spore.CodeInvalid)
		_, err = b.Node.BuildArtifact(t.Context(), spec, quiet)
		b.want(err, spore.CodeInvalid)
	})

	t.Run("Reference", func(t *testing.T) {
		b := fresh(t)
		for _, reference := range []string{"", "-rf"} {
			_, err := b.Node.ResolveArtifact(t.Context(), spore.ArtifactSpec{Reference: reference})
			b.want(err, spore.CodeInvalid)
			_, err = b.Node.BuildArtifact(t.Context(), spore.ArtifactSpec{Reference: reference}, quiet)
			b.want(err, spore.CodeInvalid)
		}
	})

	t.Run("Build", func(t *testing.T) {
		b := fresh(t)
		var mu sync.Mutex
		phases := map[spore.JobPhase]bool{}
		first, err := b.Node.BuildArtifact(t.Context(), b.Image, func(phase spore.JobPhase, _ spore.PullProgress) {
			mu.Lock()
			defer mu.Unlock()
			phases[phase] = true
		})
		b.must(err)
		if first.Reused || !phases[spore.PhasePulling] || !phases[spore.PhaseBuildingExt4] {
			t.Fatalf("the first build: reused %t, phases %v", first.Reused, phases)
		}
		b.must(b.Node.VerifyArtifact(t.Context(), first.ID, true))
		second, err := b.Node.BuildArtifact(t.Context(), b.Image, quiet)
		b.must(err)
		if !second.Reused || second.ID != first.ID || second.Digest != first.Digest || second.SizeBytes != first.SizeBytes {
			t.Fatalf("built as %+v, then as %+v", first, second)
		}
		b.idle()
	})

	t.Run("ConcurrentBuilds", func(t *testing.T) {
		b := fresh(t)
		var wg sync.WaitGroup
		built, errs := make([]*spore.Artifact, 4), make([]error, 4)
		for i := range built {
			wg.Go(func() { built[i], errs[i] = b.Node.BuildArtifact(t.Context(), b.Image, quiet) })
		}
		wg.Wait()
		b.must(errors.Join(errs...))
		fresh := 0
		for _, a := range built {
			if !a.Reused {
				fresh++
			}
			if a.ID != built[0].ID || a.Digest != built[0].Digest {
				t.Errorf("built as %s %s and as %s %s", a.ID, a.Digest, built[0].ID, built[0].Digest)
			}
		}
		if fresh != 1 {
			t.Errorf("%d of 4 builds at once made the artifact, want 1", fresh)
		}
		b.idle()
	})

	t.Run("Open", func(t *testing.T) {
		b := fresh(t)
		a := b.artifact()
		f, err := b.Node.OpenArtifact(t.Context(), a.ID)
		b.must(err)
		defer f.Close()
		if f.Size() != a.SizeBytes || f.Digest() != a.Digest {
			t.Fatalf("open: %d bytes, %s; built: %d bytes, %s", f.Size(), f.Digest(), a.SizeBytes, a.Digest)
		}
		all, err := io.ReadAll(f)
		b.must(err)
		sum := sha256.Sum256(all)
		if digest := "sha256:" + hex.EncodeToString(sum[:]); int64(len(all)) != a.SizeBytes || digest != a.Digest {
			t.Fatalf("read: %d bytes, %s; built: %d bytes, %s", len(all), digest, a.SizeBytes, a.Digest)
		}
		for _, off := range []int64{0, 1, a.SizeBytes / 3, a.SizeBytes - 10} {
			at, err := f.Seek(off, io.SeekStart)
			b.must(err)
			part := make([]byte, 10)
			_, err = io.ReadFull(f, part)
			b.must(err)
			if at != off || string(part) != string(all[off:off+10]) {
				t.Errorf("10 bytes at %d are other than when all was read", off)
			}
		}
	})

	t.Run("Drop", func(t *testing.T) {
		b := fresh(t)
		tpl := b.baked()
		id := tpl.ArtifactID
		b.want(b.Node.DropArtifact(t.Context(), id), spore.CodeInUse)
		s := b.started(tpl.ID)
		b.must(b.Node.Forget(t.Context(), tpl.ID))
		b.want(b.Node.DropArtifact(t.Context(), id), spore.CodeInUse) // of the VM
		b.collect()
		b.must(b.Node.VerifyArtifact(t.Context(), id, false))
		b.must(b.Node.Settle(t.Context(), s.ID, 0))
		b.must(b.Node.DropArtifact(t.Context(), id))
		b.want(b.Node.VerifyArtifact(t.Context(), id, false), spore.CodeNotFound)
		b.must(b.Node.DropArtifact(t.Context(), id))
		b.must(b.Node.DropArtifact(t.Context(), spore.ArtifactPrefix+"000000000000000000000000"))
	})

	t.Run("Damage", func(t *testing.T) {
		b := fresh(t)
		b.needs(b.DamageArtifact != nil, "DamageArtifact")
		id := b.artifact().ID
		b.DamageArtifact(t, id)
		b.want(b.Node.VerifyArtifact(t.Context(), id, true), spore.CodeDamaged)
		r, err := b.Node.Check(t.Context(), true, nil)
		b.must(err)
		if len(r.Problems) != 1 || r.Problems[0].Object != id || r.Problems[0].Hint == "" {
			t.Fatalf("a check finds %+v", r.Problems)
		}
		b.must(b.Node.DropArtifact(t.Context(), id)) // damaged as it is
		again, err := b.Node.BuildArtifact(t.Context(), b.Image, quiet)
		b.must(err)
		if again.ID != id || again.Reused {
			t.Fatalf("built again as %s, reused %t", again.ID, again.Reused)
		}
		b.must(b.Node.VerifyArtifact(t.Context(), id, true))
	})
}

// certificate makes an authority to be baked in.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nodetest"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
