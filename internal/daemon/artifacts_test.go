package daemon_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/node/simnode"
)

// content reads bytes of an artifact with a token of its own, and nothing else.
func (f *fleet) content(tok *api.ArtifactToken, ranges string) (status int, body []byte, header http.Header) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "http://spore.test"+tok.URL, nil)
	f.ok(err)
	req.Header.Set("Authorization", "Spore-Artifact "+tok.Token)
	if ranges != "" {
		req.Header.Set("Range", ranges)
	}
	res, err := f.raw.Do(req)
	f.ok(err)
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	f.ok(err)
	return res.StatusCode, body, res.Header
}

// TestArtifactsAreToldAndRead lists artifacts, looks at one, and reads its bytes: with a token, in parts, and whole.
func TestArtifactsAreToldAndRead(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		base := f.build("base", everywhere)
		f.build("twin", api.ReplicaPolicy{})
		var all []api.Artifact
		for a, err := range f.ListArtifacts(ctx, api.ListArtifactsParams{Status: []spore.ArtifactStatus{spore.ArtifactReady}, Limit: 1}) {
			f.ok(err)
			all = append(all, a)
		}
		if len(all) != 2 {
			t.Errorf("there are %d artifacts", len(all))
		}
		a, err := f.GetArtifact(ctx, base.ArtifactID)
		f.ok(err)
		if a.Status != spore.ArtifactReady || a.Digest == "" || a.SizeBytes == 0 || len(a.Placements) != 2 || a.Users == nil || *a.Users == 0 {
			t.Errorf("the artifact is %+v", a)
		}
		v, err := f.VerifyArtifact(ctx, a.ID, true)
		f.ok(err)
		if v.Status != spore.ArtifactReady || len(v.Nodes) != 2 || !v.Nodes[0].OK || !v.Nodes[1].OK {
			t.Errorf("the verdict is %+v", v)
		}

		tok, err := f.ArtifactToken(ctx, a.ID, 5*time.Second)
		f.ok(err)
		status, whole, header := f.content(tok, "")
		sum := sha256.Sum256(whole)
		if status != 200 || int64(len(whole)) != a.SizeBytes || a.Digest != "sha256:"+hex.EncodeToString(sum[:]) || header.Get("ETag") != `"`+a.Digest+`"` {
			t.Errorf("the whole is %d, %d bytes of %d, %v", status, len(whole), a.SizeBytes, header)
		}
		for ranges, want := range map[string][]byte{"bytes=0-9": whole[:10], "bytes=100000-": whole[100000:], "bytes=-7": whole[len(whole)-7:]} {
			if status, part, header := f.content(tok, ranges); status != 206 || !bytes.Equal(part, want) || header.Get("Content-Range") == "" {
				t.Errorf("%s is %d, %d bytes, %v", ranges, status, len(part), header)
			}
		}
		if status, _, header := f.content(tok, "bytes=99999999-"); status != 416 || header.Get("Content-Range") == "" {
			t.Errorf("what is beyond it is %d, %v", status, header)
		}
		other := *tok
		other.URL = "/v1/artifacts/" + f.template("twin").ArtifactID + "/content"
		if status, _, _ := f.content(&other, ""); status != 401 {
			t.Errorf("another artifact by the same token is %d", status)
		}
		other.URL = "/v1/artifacts/" + a.ID
		if status, _, _ := f.content(&other, ""); status != 401 {
			t.Errorf("anything else by the token is %d", status)
		}
		f.pass(6 * time.Second)
		if status, _, _ := f.content(tok, ""); status != 401 {
			t.Errorf("when its time is up the token is good for %d", status)
		}

		file, err := os.Create(filepath.Join(f.dir, "download"))
		f.ok(err)
		defer file.Close()
		_, err = file.Write(whole[:5000]) // an earlier download broke here
		f.ok(err)
		f.ok(f.DownloadArtifact(ctx, a.ID, file, nil))
		if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("downloaded were %d bytes, %v", len(got), err)
		}
	})
}

// TestLostArtifactHeals loses the bytes of an artifact that is READY: reading it says so, and a build makes it whole again.
func TestLostArtifactHeals(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		base := f.build("base", everywhere)
		id := base.ArtifactID
		first, second := f.cluster.Machine("n1"), f.cluster.Machine("n2")

		first.HarmArtifact(id, simnode.Loss) // the other node has it still
		v, err := f.VerifyArtifact(ctx, id, false)
		f.ok(err)
		if v.Status != spore.ArtifactReady || v.Nodes[0].OK || spore.CodeOf(client.VerdictError(v.Nodes[0])) != spore.CodeNotFound || !v.Nodes[1].OK {
			t.Errorf("the verdict is %+v", v)
		}
		tok, err := f.ArtifactToken(ctx, id, 0)
		f.ok(err)
		if status, body, _ := f.content(tok, ""); status != 200 || int64(len(body)) != simnode.DefaultImageBytes {
			t.Errorf("from the node that has it: %d, %d bytes", status, len(body))
		}

		second.HarmArtifact(id, simnode.Damage)
		second.SetReachable(false)
		if status, _, _ := f.content(tok, ""); status == 200 || status == 404 {
			t.Errorf("while the node that may have it is silent: %d", status)
		}
		if a, err := f.GetArtifact(ctx, id); err != nil || a.Status != spore.ArtifactReady {
			t.Errorf("while the node that may have it is silent it is %+v, %v", a, err)
		}
		second.SetReachable(true)
		if status, _, _ := f.content(tok, ""); status != 404 {
			t.Errorf("when nobody has it: %d", status)
		}
		a, err := f.GetArtifact(ctx, id)
		f.ok(err)
		if a.Status != spore.ArtifactFailed || a.LastError == "" {
			t.Errorf("when nobody has it, it is %s (%q)", a.Status, a.LastError)
		}
		_, err = f.ArtifactToken(ctx, id, 0)
		f.refused(err, refusal{code: spore.CodeConflict, status: 409, words: []string{id, "FAILED"}})

		f.redo("base", spore.RedoAll)
		if a, err = f.GetArtifact(ctx, id); err != nil || a.Status != spore.ArtifactReady || a.Digest == "" {
			t.Errorf("built again it is %+v, %v", a, err)
		}
		if status, body, _ := f.content(tok, ""); status != 200 || int64(len(body)) != simnode.DefaultImageBytes {
			t.Errorf("built again: %d, %d bytes", status, len(body))
		}
		if v, err = f.VerifyArtifact(ctx, id, true); err != nil || !v.Nodes[0].OK || !v.Nodes[1].OK {
			t.Errorf("the verdict is %+v, %v", v, err)
		}
	})
}

// TestOneBuildForAll builds templates of one image at once: one build makes the artifact.
func TestOneBuildForAll(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		var jobs []*api.TemplateJob
		for _, name := range []string{"a", "b", "c", "d"} {
			tj, err := f.BuildTemplate(ctx, api.BuildRequest{Name: name, Image: "registry.test/one", MemoryMiB: 128, DiskMiB: 64})
			f.ok(err)
			jobs = append(jobs, tj)
		}
		pulled := 0
		for _, tj := range jobs {
			made := f.made(tj)
			if made.ArtifactID != f.template("a").ArtifactID {
				t.Errorf("%s has an artifact of its own", made.Name)
			}
			for line, err := range f.JobLog(ctx, tj.Job.ID, 0) {
				f.ok(err)
				if line.Message == "artifact "+made.ArtifactID+" is built from "+made.Image.Digest {
					pulled++
				}
			}
		}
		if pulled != 1 {
			t.Errorf("it was built %d times", pulled)
		}
	})
}

// TestUnusedArtifactsGo deletes what stands on an artifact: it stays for the next build of its image, and goes in the end.
func TestUnusedArtifactsGo(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.build("base", api.ReplicaPolicy{}).ArtifactID
		_, err := f.DeleteTemplate(ctx, "base", client.DeleteOptions{})
		f.ok(err)
		f.pass(loops)
		a, err := f.GetArtifact(ctx, id)
		f.ok(err)
		if *a.Users != 0 || a.UnusedAt.IsZero() || a.Status != spore.ArtifactReady {
			t.Errorf("unused it is %+v", a)
		}
		if again := f.build("base", api.ReplicaPolicy{}); again.ArtifactID != id {
			t.Errorf("the next build made %s", again.ArtifactID)
		}
		f.pass(loops)
		if a, err = f.GetArtifact(ctx, id); err != nil || !a.UnusedAt.IsZero() {
			t.Errorf("used again it is %+v, %v", a, err)
		}
		_, err = f.DeleteTemplate(ctx, "base", client.DeleteOptions{})
		f.ok(err)
		f.pass(loops)
		f.leap(8 * 24 * time.Hour)
		_, err = f.GetArtifact(ctx, id)
		f.refused(err, refusal{code: spore.CodeNotFound, status: 404, words: []string{id}})
		if left := f.cluster.Machine("n1").Audit().Artifacts; len(left) > 0 {
			t.Errorf("on the node are %+v", left)
		}
	})
}
