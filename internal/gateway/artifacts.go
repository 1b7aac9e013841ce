package gateway

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func artifact(a *spore.Artifact) api.Artifact {
	return api.Artifact{
		ID: a.ID, Status: a.Status, Image: image(a.Image), Process: process(a.Process), EgressCA: egressCA(a.EgressCA),
		Digest: a.Digest, SizeBytes: a.SizeBytes, BuildJobID: a.BuildJobID, LastError: a.LastError,
		UnusedAt: utc(a.UnusedAt), TriedAt: utc(a.TriedAt), CreatedAt: a.CreatedAt.UTC(), UpdatedAt: a.UpdatedAt.UTC(),
	}
}

func (n *native) ListArtifacts(ctx context.Context, r api.ListArtifactsRequestObject) (api.ListArtifactsResponseObject, error) {
	limit, err := pageLimit(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	found, next, err := n.svc.Artifacts(ctx, center.ArtifactQuery{Statuses: r.Params.Status, Limit: limit, PageToken: r.Params.PageToken})
	if err != nil {
		return nil, err
	}
	return api.ListArtifacts200JSONResponse{Artifacts: each(found, artifact), NextPageToken: next}, nil
}

func (n *native) GetArtifact(ctx context.Context, r api.GetArtifactRequestObject) (api.GetArtifactResponseObject, error) {
	d, err := n.svc.Artifact(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out := artifact(d.Artifact)
	out.Users = &d.Users
	out.Placements = make([]api.Placement, 0, len(d.Placements))
	for _, p := range d.Placements {
		out.Placements = append(out.Placements, api.Placement{NodeID: p.NodeID, VerifiedAt: utc(p.VerifiedAt), CreatedAt: p.CreatedAt.UTC()})
	}
	return api.GetArtifact200JSONResponse(out), nil
}

func (n *native) VerifyArtifact(ctx context.Context, r api.VerifyArtifactRequestObject) (api.VerifyArtifactResponseObject, error) {
	v, err := n.svc.VerifyArtifact(ctx, r.ID, r.Body != nil && r.Body.Full)
	if err != nil {
		return nil, err
	}
	out := api.VerifyArtifact200JSONResponse{ArtifactID: v.ArtifactID, Status: v.Status, Full: v.Full, Nodes: make([]api.NodeVerdict, 0, len(v.Nodes))}
	for _, one := range v.Nodes {
		verdict := api.NodeVerdict{NodeID: one.NodeID, OK: one.Err == nil}
		if one.Err != nil {
			shown := shownError(ctx, one.Err)
			verdict.Error = &shown
		}
		out.Nodes = append(out.Nodes, verdict)
	}
	return out, nil
}

func (n *native) CreateArtifactToken(ctx context.Context, r api.CreateArtifactTokenRequestObject) (api.CreateArtifactTokenResponseObject, error) {
	life := defaultTokenTTL
	if r.Body != nil && r.Body.TTLSeconds != 0 {
		life = time.Duration(r.Body.TTLSeconds) * time.Second
	}
	if life < 0 || life > maxTokenTTL {
		return nil, spore.Invalidf("ttlSeconds", "%s is out of range", life).WithHint("at most %s", maxTokenTTL)
	}
	d, err := n.svc.Artifact(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if a := d.Artifact; a.Status != spore.ArtifactReady {
		return nil, spore.Errorf(spore.CodeConflict, "artifact %s is %s and cannot be read", a.ID, a.Status)
	}
	end := n.opt.Now().Add(life).Truncate(time.Second)
	return api.CreateArtifactToken200JSONResponse{
		URL: "/v1/artifacts/" + d.Artifact.ID + "/content", Token: n.tokens.issue(d.Artifact.ID, end), ExpiresAt: end.UTC(),
	}, nil
}

// contentRequest is a request for the bytes of an artifact.
type contentRequest struct {
	id                              string
	head                            bool
	ranges, ifRange, match, noMatch string
}

func (n *native) GetArtifactContent(ctx context.Context, r api.GetArtifactContentRequestObject) (api.GetArtifactContentResponseObject, error) {
	p := r.Params
	return n.content(ctx, contentRequest{id: r.ID, ranges: p.Range, ifRange: p.IfRange, match: p.IfMatch, noMatch: p.IfNoneMatch})
}

func (n *native) HeadArtifactContent(ctx context.Context, r api.HeadArtifactContentRequestObject) (api.HeadArtifactContentResponseObject, error) {
	return n.content(ctx, contentRequest{id: r.ID, head: true, match: r.Params.IfMatch, noMatch: r.Params.IfNoneMatch})
}

func (n *native) content(ctx context.Context, q contentRequest) (streamed, error) {
	if granted, shown := ctx.Value(keyGrant).(string); shown && granted != q.id {
		return nil, spore.Errorf(spore.CodeUnauthenticated, "the token is not one for this artifact")
	}
	file, err := n.svc.OpenArtifact(ctx, q.id)
	if err != nil {
		return nil, err
	}
	return func(w http.ResponseWriter) error {
		defer func() {
			if err := file.Close(); err != nil {
				logOf(ctx).Warn("closing an artifact", "artifact", q.id, "err", err)
			}
		}()
		return n.writeContent(ctx, w, q, file)
	}, nil
}

func (n *native) writeContent(ctx context.Context, w http.ResponseWriter, q contentRequest, file center.ArtifactFile) error {
	size, tag, h := file.Size(), `"`+file.Digest()+`"`, w.Header()
	h.Set("ETag", tag)
	h.Set("Accept-Ranges", "bytes")
	switch {
	case q.match != "" && !tagListed(q.match, tag, false):
		return &statusError{http.StatusPreconditionFailed, spore.Errorf(spore.CodeConflict, "artifact %s is not the one that If-Match names", q.id)}
	case q.noMatch != "" && tagListed(q.noMatch, tag, true):
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	part, status := byteRange{0, size}, http.StatusOK
	if q.ranges != "" && (q.ifRange == "" || q.ifRange == tag) {
		switch asked, how := readRange(q.ranges, size); how {
		case rangePart:
			part, status = asked, http.StatusPartialContent
			h.Set("Content-Range", part.header(size))
		case rangeNone:
			h.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
			return &statusError{http.StatusRequestedRangeNotSatisfiable, spore.Invalidf("Range", "there are %d bytes only", size)}
		}
	}
	if _, err := file.Seek(part.start, io.SeekStart); err != nil {
		return err
	}
	// Both are about the whole, whichever part of it is sent.
	if hexDigest, ok := strings.CutPrefix(file.Digest(), "sha256:"); ok {
		if raw, err := hex.DecodeString(hexDigest); err == nil {
			sum := base64.StdEncoding.EncodeToString(raw)
			h.Set("Digest", "SHA-256="+sum)
			h.Set("Repr-Digest", "sha-256=:"+sum+":")
		}
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(part.length, 10))
	w.WriteHeader(status)
	if q.head {
		return nil
	}
	return n.copyContent(ctx, w, q.id, io.LimitReader(file, part.length), part.length)
}

// copyContent sends bytes until they are sent, the client is gone or the server shuts down. An answer that is cut off must
// not look whole, so its connection breaks with it.
func (n *native) copyContent(ctx context.Context, w http.ResponseWriter, id string, from io.Reader, length int64) error {
	ctx, cancel := n.untilClosing(ctx)
	defer cancel()
	rc := http.NewResponseController(w)
	stop := context.AfterFunc(ctx, func() {
		if err := rc.SetWriteDeadline(time.Unix(1, 0)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			logOf(ctx).Debug("a download cannot be ended early", "err", err)
		}
	})
	defer stop()
	sent, err := io.CopyBuffer(struct{ io.Writer }{w}, from, make([]byte, 256<<10))
	if err == nil && sent < length {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		logOf(ctx).Warn("a download was cut off", "artifact", id, "sent", sent, "of", length, "err", err)
	}
	panic(http.ErrAbortHandler)
}
