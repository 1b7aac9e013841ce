package rows

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sporevm/spore"
)

// position is the last row of a page: the next one begins right after it. It is made of the values that the list is ordered
// by, the last of them unique, so a position stays right while rows come and go.
type position struct {
	list string // which list it belongs to
	at   []any  // int64 or string
}

const tokenVersion = "2"

// token renders p for clients.
func (p position) token() string {
	parts := []string{tokenVersion, p.list}
	for _, value := range p.at {
		switch v := value.(type) {
		case int64:
			parts = append(parts, strconv.FormatInt(v, 36))
		case string:
			parts = append(parts, v)
		}
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(parts, "\x00")))
}

// parseToken reads a token of a list; like has a value of the right type for each that the list is ordered by.
func parseToken(list string, like []any, token string) (position, error) {
	const longest = 1000
	malformed := spore.Invalidf("pageToken", "it is not a token of this list").
		WithHint("pass on the nextPageToken of the page before, unchanged, or leave it out to begin anew")
	if len(token) > longest {
		return position{}, malformed
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || !utf8.Valid(text) {
		return position{}, malformed
	}
	parts := strings.Split(string(text), "\x00")
	if len(parts) != len(like)+2 || parts[0] != tokenVersion || parts[1] != list {
		return position{}, malformed
	}
	p := position{list: list}
	for i, part := range parts[2:] {
		if _, isText := like[i].(string); isText {
			p.at = append(p.at, part)
			continue
		}
		n, err := strconv.ParseInt(part, 36, 64)
		if err != nil {
			return position{}, malformed
		}
		p.at = append(p.at, n)
	}
	if p.token() != token { // there is one way to write a position; parsers accept more
		return position{}, malformed
	}
	return p, nil
}
