package serde

import (
	"encoding/json"
	"strings"
	"testing"
)

var point = Struct{Name: "Point", Fields: []Field{
	{Name: "x", Type: U8, Required: true}, {Name: "kind", Type: Enum{"A", "B", "C"}}, {Name: "name", Type: Optional{String}},
	{Name: "list", Type: List{Bool}}, {Name: "any", Type: Any},
}}

// The messages are those of serde_json for such a struct.
func TestCheck(t *testing.T) {
	for body, want := range map[string]string{
		`{"x":1}`:                              "",
		` { "x" : 255 , "kind" : "B" } `:       "",
		`{"x":1,"name":null,"list":[]}`:        "",
		`{"x":1,"any":{"a":[1,2.5,{"b":{}}]}}`: "",
		``:                                     "EOF while parsing a value at line 1 column 0",
		`{`:                                    "EOF while parsing an object at line 1 column 1",
		`{}`:                                   "missing field `x` at line 1 column 2",
		"{\n}":                                 "missing field `x` at line 2 column 1",
		`{"x":256}`:                            "invalid value: integer `256`, expected u8 at line 1 column 8",
		`{"x":-1}`:                             "invalid value: integer `-1`, expected u8 at line 1 column 7",
		`{"x":1.0}`:                            "invalid type: floating point `1.0`, expected u8 at line 1 column 8",
		`{"x":"1"}`:                            `invalid type: string "1", expected u8 at line 1 column 8`,
		`{"x":null}`:                           "invalid type: null, expected u8 at line 1 column 9",
		`{"x":1,"y":2}`:                        "unknown field `y`, expected one of `x`, `kind`, `name`, `list`, `any` at line 1 column 10",
		`{"x":1,"x":2}`:                        "duplicate field `x` at line 1 column 10",
		`{"x":1,"kind":"D"}`:                   "unknown variant `D`, expected one of `A`, `B`, `C` at line 1 column 17",
		`{"x":1,"kind":1}`:                     "expected value at line 1 column 15",
		`{"x":1,"list":[true,1]}`:              "invalid type: integer `1`, expected a boolean at line 1 column 21",
		`{"x":1,"list":[true,]}`:               "trailing comma at line 1 column 21",
		`{"x":1,}`:                             "trailing comma at line 1 column 8",
		`{"x":1} {`:                            "trailing characters at line 1 column 9",
		`{"x" 1}`:                              "expected `:` at line 1 column 6",
		`{x:1}`:                                "key must be a string at line 1 column 2",
		`[]`:                                   "invalid length 0, expected struct Point with 5 elements at line 1 column 2",
		`3`:                                    "invalid type: integer `3`, expected struct Point at line 1 column 1",
	} {
		got := ""
		if err := Check(point, []byte(body)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, seed := range []string{`{"x":1}`, `{"x":1,"any":[[[{"a":"\u0041\n"}]]],"name":"é"}`, `{"x":01}`, `{"x":1e5}`, `{"x":1,"list":[true,false]}`, "\"", "{\"\\"} {
		f.Add([]byte(seed))
	}
	f.Add([]byte(strings.Repeat(`{"any":`, 200)))
	f.Fuzz(func(t *testing.T, body []byte) {
		if err := Check(Any, body); err == nil && !json.Valid(body) {
			t.Errorf("%q was taken and is no JSON", body)
		}
		if err := Check(point, body); err == nil {
			var v map[string]any
			if err := json.Unmarshal(body, &v); err != nil {
				t.Errorf("%q was taken and is no object: %v", body, err)
			} else if _, ok := v["x"].(float64); !ok {
				t.Errorf("%q was taken without its field", body)
			}
		}
	})
}
