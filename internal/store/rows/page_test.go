package rows

import (
	"encoding/base64"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
)

func FuzzParseToken(f *testing.F) {
	encoded := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := position{"templates", []any{int64(1234567890123456789), "tpl-00ff"}}.token()
	f.Add("templates", good)
	f.Add("sandboxes", good)
	f.Add("templates", "")
	f.Add("templates", good+"=")
	f.Add("templates", encoded("2\x00templates\x00-z\x00a"))
	f.Add("templates", encoded("2\x00templates\x00+1\x00a"))
	f.Add("templates", encoded("2\x00templates\x00z\x00a\x00"))
	f.Add("templates", encoded("2\x00templates\x00z\x00a\xff"))
	f.Add("templates", encoded("2\x00templates\x00zzzzzzzzzzzzzzzzzz\x00a"))
	f.Add("templates", good[:14]+"\r\n"+good[14:])
	like := []any{int64(0), ""}
	f.Fuzz(func(t *testing.T, list, token string) {
		p, err := parseToken(list, like, token)
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

func TestToken(t *testing.T) {
	for _, p := range []position{
		{"templates", []any{int64(-1), "tpl-1"}},
		{"aliases", []any{"python", "3.12_a"}},
		{"replicas", []any{"tpl-1", "Node.Example.org:7 ü"}},
	} {
		got, err := parseToken(p.list, p.at, p.token())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p.at, got.at); diff != "" {
			t.Errorf("%s: %s", p.list, diff)
		}
		if _, err := parseToken(p.list, append(p.at, "more"), p.token()); err == nil {
			t.Errorf("%s: a token with too few parts was read", p.list)
		}
	}
}

func TestAlternatives(t *testing.T) {
	l := newest("jobs", "id")
	l.and("a = ?", 1)
	l.eitherOf("status", []any{"X", "Y", "X"})
	query, args := l.query([]any{int64(7), "j"}, 3)
	want := "SELECT id FROM jobs WHERE id IN (" +
		"SELECT id FROM (SELECT id FROM jobs WHERE a = ? AND (created_at, id) < (?, ?) AND status = ? ORDER BY created_at DESC, id DESC LIMIT ?) AS part" +
		" UNION " +
		"SELECT id FROM (SELECT id FROM jobs WHERE a = ? AND (created_at, id) < (?, ?) AND status = ? ORDER BY created_at DESC, id DESC LIMIT ?) AS part" +
		") ORDER BY created_at + 0 DESC, id DESC LIMIT ?"
	if diff := cmp.Diff(want, query); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]any{1, int64(7), "j", "X", 3, 1, int64(7), "j", "Y", 3, 3}, args); diff != "" {
		t.Error(diff)
	}
}
