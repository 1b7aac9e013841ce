package rows

import (
	"encoding/base64"
	"testing"

	"github.com/sporevm/spore"
)

func FuzzParseToken(f *testing.F) {
	good := position{"templates", 1234567890123456789, "tpl-00ff"}.token()
	f.Add("templates", good)
	f.Add("sandboxes", good)
	f.Add("templates", "")
	f.Add("templates", good+"=")
	f.Add("templates", base64.RawURLEncoding.EncodeToString([]byte("1.templates.-z.a")))
	f.Add("templates", base64.RawURLEncoding.EncodeToString([]byte("1.templates.+1.a")))
	f.Add("templates", base64.RawURLEncoding.EncodeToString([]byte("1.templates.zzzzzzzzzzzzzzzzzz.a")))
	f.Add("templates", good[:14]+"\r\n"+good[14:])
	f.Fuzz(func(t *testing.T, list, token string) {
		p, err := parseToken(list, token)
		if err != nil {
			if e := spore.AsError(err); e.Code != spore.CodeInvalid || e.Field != "pageToken" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if p.list != list || p.token() != token {
			t.Fatalf("%q was read as %+v, which is %q", token, p, p.token())
		}
	})
}
