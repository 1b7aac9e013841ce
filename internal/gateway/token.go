package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/sporevm/spore"
)

// ArtifactScheme is the scheme of the Authorization header under which the token of one artifact is sent.
const ArtifactScheme = "Spore-Artifact"

const (
	defaultTokenTTL = 15 * time.Minute
	maxTokenTTL     = 24 * time.Hour
	tokenKeySize    = 32
	tokenSize       = 8 + sha256.Size
	tokenPrefix     = "a1." // of the form of the token
)

// artifactTokens makes and checks tokens that let whoever shows one read the bytes of one artifact for a while. A token is
// the second in which it ends, and a MAC over that and the artifact's id; nothing about it is remembered.
type artifactTokens struct {
	key []byte
	now func() time.Time
}

func (t artifactTokens) mac(id string, end uint64) []byte {
	h := hmac.New(sha256.New, t.key)
	h.Write([]byte("spore artifact token\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, end))
	h.Write([]byte(id)) // last, as it alone has no fixed length
	return h.Sum(nil)
}

// issue makes a token for an artifact that is good until end, which is given in whole seconds.
func (t artifactTokens) issue(id string, end time.Time) string {
	second := uint64(end.Unix())
	raw := append(binary.BigEndian.AppendUint64(nil, second), t.mac(id, second)...)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// admit says whether a token is good for an artifact now.
func (t artifactTokens) admit(id, token string) error {
	end, mac, ok := parseToken(token)
	if !ok || !hmac.Equal(mac, t.mac(id, end)) {
		return spore.Errorf(spore.CodeUnauthenticated, "the token is not one for this artifact").WithHint("spore artifact token %s", id)
	}
	if now := t.now().Unix(); now < 0 || uint64(now) >= end {
		return spore.Errorf(spore.CodeUnauthenticated, "the token of the artifact has expired").WithHint("spore artifact token %s", id)
	}
	return nil
}

// parseToken takes a token apart. There is one way to write each token.
func parseToken(token string) (end uint64, mac []byte, ok bool) {
	text, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok || len(text) != base64.RawURLEncoding.EncodedLen(tokenSize) || strings.ContainsAny(text, "\r\n") {
		return 0, nil, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != tokenSize {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(raw), raw[8:], true
}

var artifactContentPath = regexp.MustCompile(`^/v1/artifacts/([A-Za-z0-9-]{1,128})/content$`)

// artifactGrant looks for the token of an artifact in a request. shown says whether there is one, and id for which artifact
// it was shown: it counts for reading the bytes of that artifact and for nothing else.
func artifactGrant(r *http.Request) (id, token string, shown bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, ArtifactScheme) {
		return "", "", false
	}
	if match := artifactContentPath.FindStringSubmatch(r.URL.EscapedPath()); match != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		id = match[1]
	}
	return id, token, true
}

// TokenKey reads the key of artifact tokens from a file, and makes both when there is none. Servers that are to take each
// other's tokens need the same key. It refuses a file that others can read, and one that holds no key.
func TokenKey(path string) ([]byte, error) {
	key, err := readTokenKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	fresh := make([]byte, tokenKeySize)
	rand.Read(fresh)
	aside, err := os.CreateTemp(filepath.Dir(path), ".token-key-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(aside.Name())
	_, err = aside.WriteString(hex.EncodeToString(fresh) + "\n")
	if err = errors.Join(err, aside.Sync(), aside.Close()); err != nil {
		return nil, err
	}
	// A link, unlike a rename, leaves a key alone that somebody else has made meanwhile.
	if err := os.Link(aside.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return nil, err
	}
	return readTokenKey(path)
}

func readTokenKey(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, spore.Errorf(spore.CodeConflict, "%s can be read by others (mode %s)", path, st.Mode()).
			WithHint("remove it; tokens made before are then void")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) != tokenKeySize {
		return nil, spore.Errorf(spore.CodeDamaged, "%s does not hold a key", path).WithHint("remove it; tokens made before are then void")
	}
	return key, nil
}
