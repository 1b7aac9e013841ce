package postgres

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestRebind(t *testing.T) {
	for query, want := range map[string]string{
		"":                "",
		"SELECT 1":        "SELECT 1",
		"a = ? AND b = ?": "a = $1 AND b = $2",
		"a = '?' AND b = ? AND c = 'it''s?' AND d = ?": "a = '?' AND b = $1 AND c = 'it''s?' AND d = $2",
		strings.Repeat("?", 11):                        "$1$2$3$4$5$6$7$8$9$10$11",
	} {
		if got := rebind(query); got != want {
			t.Errorf("%s became %s", query, got)
		}
	}
}

func FuzzRebind(f *testing.F) {
	f.Add("SELECT a FROM b WHERE c = ? AND d <> '?'")
	f.Add("'''?'?''?")
	f.Fuzz(func(t *testing.T, query string) {
		got := rebind(query)
		// Outside of quotes no question mark is left; inside nothing is changed.
		in, out := strings.Split(query, "'"), strings.Split(got, "'")
		if len(in) != len(out) {
			t.Fatalf("%q became %q", query, got)
		}
		for i := range in {
			if inside := i%2 == 1; inside && in[i] != out[i] || !inside && strings.Contains(out[i], "?") {
				t.Fatalf("%q became %q", query, got)
			}
		}
	})
}

func FuzzCleaned(f *testing.F) {
	f.Add("plain")
	f.Add("a\x00b\xffc")
	f.Fuzz(func(t *testing.T, text string) {
		type kind string
		k := kind(text)
		for _, arg := range cleaned([]any{text, &text, k, &k}) {
			var got string
			switch v := arg.(type) {
			case string:
				got = v
			case *string:
				got = *v
			case kind:
				got = string(v)
			case *kind:
				got = string(*v)
			}
			if !utf8.ValidString(got) || strings.Contains(got, "\x00") {
				t.Fatalf("%q became %q", text, got)
			}
			if isText(text) && got != text {
				t.Fatalf("%q became %q although it was fine", text, got)
			}
		}
	})
}

func FuzzParseURL(f *testing.F) {
	const secret = "Pa55-w0rd"
	f.Add("postgres://u:", "@h/d?sslmode=disable")
	f.Add("host=h password='", "' port=x")
	f.Add("postgres://u:1/", "@[::1")
	f.Fuzz(func(t *testing.T, before, after string) {
		// Names of files in it would have them read.
		for _, word := range []string{"service", "sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile"} {
			if strings.Contains(strings.ToLower(before+after), word) {
				t.Skip()
			}
		}
		config, err := parseURL(before + secret + after)
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Fatal(err)
		}
		if err == nil && config.ConnConfig.RuntimeParams["search_path"] != schema {
			t.Fatal("the tables would be elsewhere")
		}
	})
}
