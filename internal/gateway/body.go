package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// admitRequest refuses what the generated decoding would let pass: parameters and fields that do not exist (a misspelt
// dryRun must not delete), missing fields, what is out of the bounds that the description sets, bodies without end. It also takes the digest that idempotency compares.
func admitRequest(opt Options) api.MiddlewareFunc {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rt, within := routes[r.Pattern], described()[r.Pattern]
			err := checkQuery(r.URL.RawQuery, rt.params)
			if err == nil {
				err = within.checkParams(r)
			}
			if err != nil {
				writeError(w, r, err)
				return
			}
			body, err := readBody(w, r, opt.MaxBody)
			if err == nil {
				err = checkBody(body, r.Header.Get("Content-Type"), rt.body)
			}
			if err == nil {
				err = within.checkBody(body)
			}
			if err != nil {
				writeError(w, r, err)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			ctx := context.WithValue(r.Context(), keyDigest, digest(r, body))
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, spore.Errorf(spore.CodeInvalid, "the request is larger than %d bytes", limit)
	case err != nil:
		return nil, spore.Errorf(spore.CodeCanceled, "the request did not arrive whole").WithCause(err)
	}
	return bytes.TrimSpace(body), nil
}

// digest covers what the client asked for, whatever order and spacing its JSON has.
func digest(r *http.Request, body []byte) string {
	if len(body) > 0 {
		dec := json.NewDecoder(bytes.NewReader(body))
		dec.UseNumber()
		var v any
		if err := dec.Decode(&v); err == nil {
			if canonical, err := json.Marshal(v); err == nil {
				body = canonical
			}
		}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n%s\n", r.Method, r.URL.EscapedPath(), r.URL.Query().Encode())
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

func checkQuery(raw string, params reflect.Type) error {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return spore.Errorf(spore.CodeInvalid, "the query of the URL cannot be read").WithCause(err)
	}
	for _, name := range sortedKeys(query) {
		known := false
		for i := 0; params != nil && i < params.NumField(); i++ {
			tag, _, _ := strings.Cut(params.Field(i).Tag.Get("form"), ",")
			known = known || tag == name
		}
		if !known {
			return spore.Invalidf(name, "there is no such parameter")
		}
	}
	return nil
}

// checkBody says whether body is exactly one JSON value of type t.
func checkBody(body []byte, contentType string, t reflect.Type) error {
	if len(body) == 0 {
		return nil // a body that is needed has fields that are needed, and those are told by name
	}
	if t == nil {
		if string(body) == "{}" {
			return nil
		}
		return spore.Errorf(spore.CodeInvalid, "this request takes no body")
	}
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/json" {
		return spore.Errorf(spore.CodeInvalid, "the body's Content-Type is %q", contentType).WithHint("send application/json")
	}
	if err := json.Unmarshal(body, new(json.RawMessage)); err != nil {
		return bodyError(err, body)
	}
	if err := checkShape(body, t, ""); err != nil {
		return err
	}
	if err := json.Unmarshal(body, reflect.New(t).Interface()); err != nil {
		return bodyError(err, body)
	}
	return nil
}

// checkShape refuses fields that t does not have, fields that come twice, and the absence of fields that t needs, which
// are those not marked omitempty.
func checkShape(raw []byte, t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && raw[0] == '[' {
		return checkItems(raw, t.Elem(), path)
	}
	if t.Kind() != reflect.Struct || raw[0] != '{' {
		return nil // decoding names a value of the wrong type
	}
	fields := map[string]reflect.StructField{}
	needed := map[string]bool{}
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		fields[name] = t.Field(i)
		if !strings.Contains(options, "omitempty") {
			needed[name] = true
		}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return bodyError(err, raw)
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return bodyError(err, raw)
		}
		name := token.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return bodyError(err, raw)
		}
		field, known := fields[name]
		switch {
		case !known:
			return spore.Invalidf(path+name, "there is no such field").WithHint("the fields are %s", strings.Join(sortedKeys(fields), ", "))
		case seen[name]:
			return spore.Invalidf(path+name, "is there twice")
		}
		seen[name] = true
		if string(value) == "null" {
			continue
		}
		delete(needed, name)
		if err := checkShape(value, field.Type, path+name+"."); err != nil {
			return err
		}
	}
	if missing := sortedKeys(needed); len(missing) > 0 {
		return spore.Invalidf(path+missing[0], "is missing")
	}
	return nil
}

// checkItems is checkShape for a list of objects.
func checkItems(raw []byte, t reflect.Type, path string) error {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return bodyError(err, raw)
	}
	for i, item := range items {
		if err := checkShape(item, t, fmt.Sprintf("%s[%d].", strings.TrimSuffix(path, "."), i)); err != nil {
			return err
		}
	}
	return nil
}

// bodyError says where in body the JSON is wrong.
func bodyError(err error, body []byte) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		return spore.Invalidf(kind.Field, "%s is not what belongs here", kind.Value).WithHint("it takes a value of type %s", wireType(kind.Type))
	case errors.As(err, &kind):
		return spore.Errorf(spore.CodeInvalid, "the body is a JSON %s where an object belongs", kind.Value)
	case errors.As(err, &syntax):
		line, column := position(body, syntax.Offset)
		return spore.Errorf(spore.CodeInvalid, "the body is not JSON: line %d, column %d: %s", line, column, strings.TrimPrefix(syntax.Error(), "json: "))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return spore.Errorf(spore.CodeInvalid, "the request has no body").WithHint("send a JSON object")
	}
	return spore.Errorf(spore.CodeInvalid, "the body cannot be read").WithCause(err)
}

// position turns the offset that follows the offending byte into a line and column, both from 1.
func position(body []byte, offset int64) (line, column int) {
	before := body[:min(max(offset-1, 0), int64(len(body)))]
	return 1 + bytes.Count(before, []byte("\n")), len(before) - bytes.LastIndexByte(before, '\n')
}

func wireType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "object"
	case reflect.Slice:
		return "array"
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Float64:
		return "number"
	}
	return "integer"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
