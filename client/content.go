package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// artifactScheme is the scheme of the Authorization header under which the token of one artifact is sent.
const artifactScheme = "Spore-Artifact"

type artifactToken struct{}

// WithArtifactToken returns a context under which the bytes of an artifact are read with a token that was made for it,
// instead of the client's own. It needs no other.
func WithArtifactToken(ctx context.Context, token string) context.Context {
	return context.WithValue(ctx, artifactToken{}, token)
}

func addArtifactToken(ctx context.Context, r *http.Request) error {
	if token, ok := ctx.Value(artifactToken{}).(string); ok {
		r.Header.Set("Authorization", artifactScheme+" "+token)
	}
	return nil
}

// ArtifactContent is the bytes of an artifact, or the rest of them. The caller closes it.
type ArtifactContent struct {
	io.ReadCloser
	Offset int64  // of the first byte that it reads
	Size   int64  // of the whole artifact
	Digest string // of the whole artifact, "sha256:..."
}

// OpenArtifact reads the bytes of an artifact from the byte at offset on. digest is what the bytes before it are a part of, and
// may be empty when offset is 0: when the artifact has another digest, it is read from the beginning instead.
func (c *Client) OpenArtifact(ctx context.Context, id string, offset int64, digest string) (*ArtifactContent, error) {
	params := &api.GetArtifactContentParams{}
	if offset > 0 {
		params.Range, params.IfRange = "bytes="+strconv.FormatInt(offset, 10)+"-", `"`+digest+`"`
	}
	resp, err := c.api.GetArtifactContent(ctx, id, params, addArtifactToken)
	if err := settle(resp, err); err != nil {
		return nil, err
	}
	content := &ArtifactContent{ReadCloser: resp.Body, Size: resp.ContentLength, Digest: strings.Trim(resp.Header.Get("ETag"), `"`)}
	if resp.StatusCode == http.StatusPartialContent {
		first, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != offset {
			resp.Body.Close()
			return nil, spore.Errorf(spore.CodeUnreachable, "the server answers another range than byte %d on: %q", offset, resp.Header.Get("Content-Range"))
		}
		content.Offset, content.Size = first, size
	}
	if content.Size < content.Offset || content.Digest == "" {
		resp.Body.Close()
		return nil, spore.Errorf(spore.CodeUnreachable, "the server does not say what artifact %s is", id)
	}
	return content, nil
}

// contentRange reads "bytes FIRST-LAST/SIZE".
func contentRange(header string) (first, size int64, ok bool) {
	rest, isBytes := strings.CutPrefix(header, "bytes ")
	span, total, hasSize := strings.Cut(rest, "/")
	from, to, hasEnd := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	size, err3 := strconv.ParseInt(total, 10, 64)
	ok = isBytes && hasSize && hasEnd && err1 == nil && err2 == nil && err3 == nil && 0 <= first && first <= last && last < size
	return first, size, ok
}

// DownloadFile is what an artifact is downloaded to; an *os.File is one.
type DownloadFile interface {
	io.ReadWriteSeeker
	Truncate(size int64) error
}

// DownloadArtifact brings the bytes of an artifact into f, which may hold the beginning of them already: a download that
// broke goes on where it was. A connection that breaks is made again, several times. progress, which may be nil, is
// told how many of how many bytes there are. Bytes that are not the artifact's are spore.CodeDamaged.
func (c *Client) DownloadArtifact(ctx context.Context, id string, f DownloadFile, progress func(done, total int64)) error {
	size, digest, err := c.artifactDigest(ctx, id)
	if err != nil {
		return err
	}
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	begunBefore := have > 0
	if have > size {
		have = 0
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	for {
		if err := c.fetchRest(ctx, id, f, have, size, digest, progress); err != nil {
			return err
		}
		err := checkDigest(f, id, digest)
		if !begunBefore || spore.CodeOf(err) != spore.CodeDamaged {
			return err
		}
		// What was there before may have been something else.
		begunBefore, have = false, 0
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
}

func (c *Client) artifactDigest(ctx context.Context, id string) (size int64, digest string, err error) {
	resp, err := c.api.HeadArtifactContent(ctx, id, nil, addArtifactToken)
	if err := done(resp, err); err != nil {
		// An answer to HEAD has no words. Asking for the bytes tells why there are none.
		content, why := c.OpenArtifact(ctx, id, 0, "")
		if why != nil {
			return 0, "", why
		}
		return 0, "", errors.Join(err, content.Close())
	}
	if size, digest = resp.ContentLength, strings.Trim(resp.Header.Get("ETag"), `"`); size < 0 || digest == "" {
		return 0, "", spore.Errorf(spore.CodeUnreachable, "the server does not say what artifact %s is", id)
	}
	return size, digest, nil
}

// fetchRest brings what is missing, and begins again when the connection breaks, unless nothing comes any more.
func (c *Client) fetchRest(ctx context.Context, id string, f DownloadFile, have, size int64, digest string, progress func(done, total int64)) error {
	wait, failures := firstRetry, 0
	for have < size {
		before := have
		err := c.fetchOnce(ctx, id, f, &have, size, digest, progress)
		if err == nil && have < size {
			err = io.ErrUnexpectedEOF
		}
		var broken *brokenRead
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return canceled(ctx.Err())
		case !errors.As(err, &broken) && !errors.Is(err, io.ErrUnexpectedEOF) && spore.CodeOf(err) != spore.CodeUnreachable:
			return err
		}
		if have > before {
			wait, failures = firstRetry, 0
		}
		if failures++; failures > maxAttempts {
			return spore.Errorf(spore.CodeUnreachable, "the download of artifact %s breaks again and again: %w", id, err).
				WithHint("run it again later; it goes on where it broke")
		}
		select {
		case <-ctx.Done():
			return canceled(ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, maxRetry)
		}
	}
	return nil
}

// brokenRead is an error of the connection, as opposed to one of the file.
type brokenRead struct{ err error }

func (e *brokenRead) Error() string { return e.err.Error() }
func (e *brokenRead) Unwrap() error { return e.err }

func (c *Client) fetchOnce(ctx context.Context, id string, f DownloadFile, have *int64, size int64, digest string, progress func(done, total int64)) error {
	content, err := c.OpenArtifact(ctx, id, *have, digest)
	if err != nil {
		return err
	}
	defer content.Close()
	if content.Digest != digest || content.Size != size {
		return spore.Errorf(spore.CodeConflict, "artifact %s has changed during the download", id).WithHint("download it again")
	}
	*have = content.Offset
	if _, err := f.Seek(*have, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for {
		n, readErr := content.Read(buf)
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		if *have += int64(n); *have > size {
			return spore.Errorf(spore.CodeDamaged, "the server sends more than artifact %s is", id)
		}
		if progress != nil && n > 0 {
			progress(*have, size)
		}
		switch readErr {
		case nil:
		case io.EOF:
			return nil
		default:
			return &brokenRead{readErr}
		}
	}
}

// checkDigest reads what was downloaded once more, so that it is the file that is proven and not the connection.
func checkDigest(f io.ReadSeeker, id, digest string) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return spore.Errorf(spore.CodeDamaged, "the bytes that came are not artifact %s", id).WithHint("have the nodes look for it: spore artifact verify --full %s", id)
	}
	return nil
}
