package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// Bounds that OpenAPI 3.0 has no word for.
const (
	extKeyLength = "x-max-key-length" // of the keys of a map
	extBytes     = "x-max-bytes"      // of all keys and values of a map, or all items of a list, together
)

// bounds are the sizes, forms and ranges that the API's description sets, by route: what is described is what holds.
type bounds struct {
	params openapi3.Parameters
	body   *openapi3.Schema
}

// described reads them from the description, once.
var described = sync.OnceValue(func() map[string]bounds {
	doc, err := openapi3.NewLoader().LoadFromData(api.Spec)
	if err != nil {
		panic(fmt.Sprintf("the description of the API: %v", err)) // it is part of the program
	}
	all := map[string]bounds{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			b := bounds{params: append(slices.Clone(item.Parameters), op.Parameters...)}
			if op.RequestBody != nil {
				b.body = op.RequestBody.Value.Content.Get("application/json").Schema.Value
			}
			all[method+" "+path] = b
		}
	}
	return all
})

// checkParams holds the parameters of a request against their bounds. What cannot be read as the type that it should be is
// refused later, where it is read.
func (b bounds) checkParams(r *http.Request) error {
	query := r.URL.Query()
	for _, ref := range b.params {
		p := ref.Value
		var values []string
		switch p.In {
		case openapi3.ParameterInPath:
			values = []string{r.PathValue(p.Name)}
		case openapi3.ParameterInQuery:
			values = query[p.Name]
		case openapi3.ParameterInHeader:
			values = r.Header.Values(p.Name)
		}
		if p.In != openapi3.ParameterInPath {
			values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" }) // as good as not given
		}
		if len(values) == 0 {
			continue
		}
		if err := checkParam(p, values); err != nil {
			return err
		}
	}
	return nil
}

func checkParam(p *openapi3.Parameter, values []string) error {
	schema := p.Schema.Value
	if schema.Type.Is("array") {
		if p.Explode != nil && !*p.Explode {
			values = strings.Split(strings.Join(values, ","), ",")
		}
		list := make([]any, len(values))
		for i, v := range values {
			list[i] = v
		}
		return within(list, schema, p.Name)
	}
	for _, v := range values {
		var value any = v
		if schema.Type.Is("integer") {
			value = json.Number(v)
		}
		if err := within(value, schema, p.Name); err != nil {
			return err
		}
	}
	return nil
}

// checkBody holds a body against its bounds.
func (b bounds) checkBody(body []byte) error {
	if b.body == nil || len(body) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return bodyError(err, body)
	}
	return within(v, b.body, "")
}

// within says whether a value is within what its schema bounds. Types are not looked at.
func within(v any, schema *openapi3.Schema, field string) error {
	for _, part := range schema.AllOf {
		if err := within(v, part.Value, field); err != nil {
			return err
		}
	}
	switch v := v.(type) {
	case string:
		return stringWithin(v, schema, field)
	case json.Number:
		return numberWithin(v, schema, field)
	case []any:
		return listWithin(v, schema, field)
	case map[string]any:
		return objectWithin(v, schema, field)
	}
	return nil
}

// patterns are compiled once; they come from the description, so there are few.
var patterns sync.Map

func pattern(expr string) *regexp.Regexp {
	if re, ok := patterns.Load(expr); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(expr)
	patterns.Store(expr, re)
	return re
}

func stringWithin(s string, schema *openapi3.Schema, field string) error {
	n := uint64(utf8.RuneCountInString(s))
	switch {
	case n < schema.MinLength && n == 0:
		return spore.Invalidf(field, "is empty")
	case n < schema.MinLength:
		return spore.Invalidf(field, "is too short").WithHint("at least %d characters", schema.MinLength)
	case schema.MaxLength != nil && n > *schema.MaxLength:
		return spore.Invalidf(field, "is too long").WithHint("at most %d characters", *schema.MaxLength)
	case schema.Pattern != "" && !pattern(schema.Pattern).MatchString(s):
		return spore.Invalidf(field, "does not have the right form").WithHint("it must match %s", schema.Pattern)
	case len(schema.Enum) > 0 && !slices.Contains(schema.Enum, any(s)):
		return spore.Invalidf(field, "there is no %.60q", s).WithHint("one of %s", enumerate(schema.Enum))
	}
	return nil
}

func enumerate(values []any) string {
	names := make([]string, 0, len(values))
	for _, v := range values {
		names = append(names, fmt.Sprint(v))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func numberWithin(n json.Number, schema *openapi3.Schema, field string) error {
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil {
		return nil // the decoding names it
	}
	if schema.Min != nil && f < *schema.Min || schema.Max != nil && f > *schema.Max {
		e := spore.Invalidf(field, "%.40s is out of range", n)
		switch {
		case schema.Min == nil:
			return e.WithHint("at most %.0f", *schema.Max)
		case schema.Max == nil:
			return e.WithHint("at least %.0f", *schema.Min)
		}
		return e.WithHint("between %.0f and %.0f", *schema.Min, *schema.Max)
	}
	return nil
}

func listWithin(list []any, schema *openapi3.Schema, field string) error {
	n := uint64(len(list))
	switch {
	case n < schema.MinItems:
		return spore.Invalidf(field, "has %d items", n).WithHint("at least %d", schema.MinItems)
	case schema.MaxItems != nil && n > *schema.MaxItems:
		return spore.Invalidf(field, "has %d items", n).WithHint("at most %d", *schema.MaxItems)
	}
	size := 0
	for i, item := range list {
		if s, ok := item.(string); ok {
			size += len(s)
		}
		if schema.Items == nil {
			continue
		}
		at := field
		if schema.Items.Value.Type.Is("object") {
			at = fmt.Sprintf("%s[%d]", field, i)
		}
		if err := within(item, schema.Items.Value, at); err != nil {
			return err
		}
	}
	return sizeWithin(size, schema, field)
}

func objectWithin(object map[string]any, schema *openapi3.Schema, field string) error {
	if n := uint64(len(object)); schema.MaxProps != nil && n > *schema.MaxProps {
		return spore.Invalidf(field, "has %d entries", n).WithHint("at most %d", *schema.MaxProps)
	}
	longest, boundedKeys := extension(schema, extKeyLength)
	size := 0
	for _, key := range sortedKeys(object) {
		value := object[key]
		size += len(key)
		if s, ok := value.(string); ok {
			size += len(s)
		}
		if boundedKeys && len(key) > longest {
			return spore.Invalidf(field, "the name %.60q is too long", key).WithHint("at most %d bytes", longest)
		}
		if property := schema.Properties[key]; property != nil {
			if err := within(value, property.Value, join(field, key)); err != nil {
				return err
			}
		} else if rest := schema.AdditionalProperties.Schema; rest != nil {
			if err := within(value, rest.Value, join(field, fmt.Sprintf("%.60s", key))); err != nil {
				return err
			}
		}
	}
	return sizeWithin(size, schema, field)
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

func sizeWithin(size int, schema *openapi3.Schema, field string) error {
	if most, bounded := extension(schema, extBytes); bounded && size > most {
		return spore.Invalidf(field, "is %d bytes in all", size).WithHint("at most %d", most)
	}
	return nil
}

func extension(schema *openapi3.Schema, name string) (int, bool) {
	f, ok := schema.Extensions[name].(float64)
	return int(f), ok
}
