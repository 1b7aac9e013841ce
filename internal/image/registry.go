package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	spore "github.com/sporevm/spore"
)

// registrySource is an image in a registry.
type registrySource struct {
	ref    Reference
	name   name.Reference
	puller *remote.Puller
	blobs  *blobStore
}

func newRegistrySource(ref Reference, insecure bool, keychain authn.Keychain, blobs *blobStore) (*registrySource, error) {
	s := &registrySource{ref: ref, name: ref.remote, blobs: blobs}
	if insecure {
		n, err := name.ParseReference(ref.text, name.Insecure)
		if err != nil {
			return nil, spore.Invalidf("image", "%q is not a valid image reference", ref.text)
		}
		s.name = n
	}
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	base := remote.DefaultTransport.(*http.Transport).Clone()
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(keychain),
		remote.WithTransport(&schemeGuard{next: base, insecure: insecure}),
		remote.WithUserAgent("spore"),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare for registry %s: %w", s.name.Context().RegistryStr(), err)
	}
	s.puller = puller
	return s, nil
}

// root asks for the digest first, which registries do not count as a pull, and for the manifest only if it is new.
func (s *registrySource) root(ctx context.Context) (v1.Descriptor, error) {
	if d, ok := s.name.(name.Digest); ok {
		digest, err := v1.NewHash(d.DigestStr())
		if err == nil && s.blobs.has(digest, -1) {
			if data, err := s.blobs.read(digest, maxDocument); err == nil {
				return v1.Descriptor{Digest: digest, Size: int64(len(data)), Data: data}, nil
			}
		}
	} else if head, err := s.puller.Head(ctx, s.name); err == nil && s.blobs.has(head.Digest, -1) {
		if data, err := s.blobs.read(head.Digest, maxDocument); err == nil {
			return v1.Descriptor{MediaType: head.MediaType, Digest: head.Digest, Size: int64(len(data)), Data: data}, nil
		}
	} else if answer := (*transport.Error)(nil); err != nil && !errors.As(err, &answer) {
		return v1.Descriptor{}, s.explain(ctx, err, "image "+s.ref.String())
	}
	got, err := s.puller.Get(ctx, s.name)
	if err != nil {
		return v1.Descriptor{}, s.explain(ctx, err, "image "+s.ref.String())
	}
	return v1.Descriptor{MediaType: got.MediaType, Digest: got.Digest, Size: int64(len(got.Manifest)), Data: got.Manifest}, nil
}

func (s *registrySource) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	what := fmt.Sprintf("%s of image %s", d.Digest, s.ref)
	digest := s.name.Context().Digest(d.Digest.String())
	if d.MediaType.IsImage() || d.MediaType.IsIndex() {
		got, err := s.puller.Get(ctx, digest)
		if err != nil {
			return nil, s.explain(ctx, err, what)
		}
		return io.NopCloser(strings.NewReader(string(got.Manifest))), nil
	}
	layer, err := s.puller.Layer(ctx, digest)
	if err != nil {
		return nil, s.explain(ctx, err, what)
	}
	rc, err := layer.Compressed()
	if err != nil {
		return nil, s.explain(ctx, err, what)
	}
	return &explainedReader{rc, func(err error) error { return s.explain(ctx, err, what) }}, nil
}

// explain turns what a registry, or the way to it, answered into an error of Spore's.
func (s *registrySource) explain(ctx context.Context, err error, what string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	registry := s.name.Context().RegistryStr()
	if errors.Is(err, errPlainHTTP) {
		return spore.Errorf(spore.CodeUnreachable, "registry %s answers in plain HTTP only", registry).WithCause(err).
			WithHint("serve it with TLS, or allow plain HTTP for it explicitly")
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		return s.refusal(answer, registry, what)
	}
	if strings.Contains(err.Error(), "error verifying") {
		return spore.Errorf(spore.CodeDamaged, "%s does not match its digest", what).WithCause(err).
			WithHint("push the image again")
	}
	var netErr net.Error
	if errors.As(err, &netErr) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return spore.Errorf(spore.CodeUnreachable, "registry %s cannot be reached for %s", registry, what).WithCause(err).
			WithHint("check the registry's name and this machine's network (%s)", firstLine(err))
	}
	return spore.Errorf(spore.CodeUnreachable, "registry %s gave no usable answer for %s", registry, what).WithCause(err).
		WithHint("%s", firstLine(err))
}

func (s *registrySource) refusal(answer *transport.Error, registry, what string) error {
	for _, d := range answer.Errors {
		switch d.Code {
		case transport.ManifestUnknownErrorCode, transport.NameUnknownErrorCode, transport.BlobUnknownErrorCode:
			answer.StatusCode = http.StatusNotFound
		case transport.UnauthorizedErrorCode, transport.DeniedErrorCode:
			answer.StatusCode = http.StatusUnauthorized
		}
	}
	switch code := answer.StatusCode; {
	case code == http.StatusNotFound:
		return spore.Errorf(spore.CodeNotFound, "registry %s does not have %s", registry, what).WithCause(answer).
			WithHint("check the image's name and tag")
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return spore.Errorf(spore.CodeNotFound, "registry %s does not show %s: it does not exist, or needs other credentials", registry, what).WithCause(answer).
			WithHint("log in as the user that runs the server (docker login %s, or podman login %s)", registry, registry)
	case code == http.StatusTooManyRequests:
		return spore.Errorf(spore.CodeBusy, "registry %s wants fewer requests", registry).WithCause(answer).
			WithHint("try again later, or log in to raise the limit (docker login %s)", registry)
	default:
		return spore.Errorf(spore.CodeUnreachable, "registry %s answered %d to the request for %s", registry, code, what).WithCause(answer).
			WithHint("try again later")
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// explainedReader gives the errors of a download their meaning.
type explainedReader struct {
	io.ReadCloser
	explain func(error) error
}

func (r *explainedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.explain(err)
	}
	return n, err
}

var errPlainHTTP = errors.New("plain HTTP is allowed for loopback addresses only")

// schemeGuard refuses plain HTTP to other machines, to which a client would otherwise fall back for private networks
// or follow a redirect.
type schemeGuard struct {
	next     http.RoundTripper
	insecure bool
}

func (g *schemeGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.insecure && !loopback(req.URL.Hostname()) {
		return nil, errPlainHTTP
	}
	return g.next.RoundTrip(req)
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
