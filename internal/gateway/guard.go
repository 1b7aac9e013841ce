package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/sporevm/spore"
)

// guard decides who may use the server at all.
func guard(opt Options, tokens artifactTokens, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(opt.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		switch {
		case opt.LoopbackOnly && !loopbackHost(r.Host):
			writeError(w, r, spore.Errorf(spore.CodeUnauthenticated, "host %q is not served here", r.Host).
				WithHint("the server listens on loopback; use http://127.0.0.1"))
			return
		case crossOrigin(r):
			writeError(w, r, spore.Errorf(spore.CodeUnauthenticated, "requests from other web origins are not served"))
			return
		}
		if id, token, shown := artifactGrant(r); shown {
			if err := tokens.admit(id, token); err != nil {
				writeError(w, r, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyGrant, id)))
			return
		}
		if opt.Token != "" && r.URL.Path != "/healthz" {
			token, ok := bearer(r)
			got := sha256.Sum256([]byte(token))
			if subtle.ConstantTimeCompare(got[:], want[:]) != 1 || !ok {
				writeError(w, r, spore.Errorf(spore.CodeUnauthenticated, "the token is missing or wrong").
					WithHint("set SPORE_TOKEN_FILE to a file that holds the server's token"))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return token, ok && strings.EqualFold(scheme, "Bearer")
}

// loopbackHost says whether a Host header names this machine by a name that only this machine gives out.
func loopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// crossOrigin says whether a browser sent the request on behalf of another site's page. Other clients send neither header.
func crossOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host)
}
