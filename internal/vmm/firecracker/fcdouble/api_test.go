package fcdouble_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"
)

// description is Firecracker's own description of its API.
type description struct {
	doc   *openapi3.T
	minor int
}

// readAPI reads the description from the file that SPORE_FIRECRACKER_API names, or from where one is kept next to the repository.
func readAPI(t testing.TB) *description {
	t.Helper()
	path := os.Getenv("SPORE_FIRECRACKER_API")
	if path == "" {
		root, err := filepath.Abs("../../../..") // of the repository
		must(t, err)
		path = filepath.Join(filepath.Dir(root), "shared", "reference", "firecracker.yaml")
	}
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		t.Skipf("there is no description of Firecracker's API at %s; SPORE_FIRECRACKER_API can name one", path)
	}
	must(t, err)
	var tree map[string]any
	must(t, yaml.Unmarshal(text, &tree))
	asJSON, err := json.Marshal(named(tree))
	must(t, err)
	var old openapi2.T
	must(t, json.Unmarshal(asJSON, &old))
	doc, err := openapi2conv.ToV3(&old)
	must(t, err)
	must(t, openapi3.NewLoader().ResolveRefsIn(doc, nil))
	parts := strings.Split(old.Info.Version, ".")
	minor, err := strconv.Atoi(parts[1])
	must(t, err)
	return &description{doc, minor}
}

// named makes strings of the keys of maps: those of responses are numbers.
func named(v any) any {
	switch v := v.(type) {
	case map[any]any:
		out := map[string]any{}
		for k, e := range v {
			out[fmt.Sprint(k)] = named(e)
		}
		return out
	case map[string]any:
		for k, e := range v {
			v[k] = named(e)
		}
	case []any:
		for i := range v {
			v[i] = named(v[i])
		}
	}
	return v
}

// operation finds what a request asks for.
func (d *description) operation(method, path string) *openapi3.Operation {
	words := strings.Split(path, "/")
	for form, item := range d.doc.Paths.Map() {
		parts := strings.Split(form, "/")
		same := func(a, b string) bool { return a == b || a != "" && strings.HasPrefix(b, "{") }
		if slices.EqualFunc(words, parts, same) {
			return item.GetOperation(method)
		}
	}
	return nil
}

// withoutNulls drops what is null: the description knows no null, and Firecracker shows what is not set so.
func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				delete(v, k)
			} else {
				v[k] = withoutNulls(e)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutNulls(v[i])
		}
	}
	return v
}

// TestDescribed holds what the stand-in takes and answers against Firecracker's own description of its API.
func TestDescribed(t *testing.T) {
	d := readAPI(t)
	dir := shortDir(t)
	stand := double(t, "1."+strconv.Itoa(d.minor)+".0")
	seen := map[string]bool{}
	check := func(t *testing.T, s step, a answer, body string) {
		op := d.operation(s.method, s.path)
		if op == nil {
			if a.status < 300 {
				t.Errorf("%s %s is taken and is not in the description", s.method, s.path)
			}
			return
		}
		if a.status < 300 && body != "" {
			var v any
			must(t, json.Unmarshal([]byte(body), &v))
			schema := op.RequestBody.Value.Content.Get("application/json").Schema.Value
			// The description asks of a PATCH of the machine all that a PUT needs, and knows nothing of fields that are passed over.
			known := s.method+s.path != "PATCH/machine-config" && !strings.Contains(body, `"x"`)
			if err := schema.VisitJSON(withoutNulls(v)); err != nil && known {
				t.Errorf("%s %s takes %s, against the description: %v", s.method, s.path, body, err)
			}
		}
		response := op.Responses.Value(strconv.Itoa(a.status))
		if response == nil {
			response = op.Responses.Default()
		}
		if response == nil {
			t.Errorf("%s %s answers %d, which is not in the description", s.method, s.path, a.status)
			return
		}
		seen[s.method+" "+s.path] = true
		content := response.Value.Content.Get("application/json")
		if a.body == "" {
			return
		}
		var v any
		must(t, json.Unmarshal([]byte(a.body), &v))
		if content == nil {
			t.Errorf("%s %s has a body, which is not in the description", s.method, s.path)
			return
		}
		if err := content.Schema.Value.VisitJSON(withoutNulls(v)); err != nil {
			t.Errorf("%s %s answers %s, against the description: %v", s.method, s.path, a.body, err)
		}
	}
	for _, sc := range scripts {
		t.Run(strings.ReplaceAll(sc.name, " ", "_"), func(t *testing.T) {
			dir = shortDir(t)
			furnish(t, dir)
			if sc.snapshot {
				save(t, stand, dir)
			}
			p := launch(t, stand, dir)
			for _, s := range sc.steps {
				if s.before != nil {
					s.before(t, dir)
				}
				body := strings.ReplaceAll(s.body, "$D", dir)
				check(t, s, p.ask(s.method, s.path, body), body)
			}
		})
	}
	if len(seen) < 20 {
		t.Errorf("only %d operations were looked at", len(seen))
	}
}
