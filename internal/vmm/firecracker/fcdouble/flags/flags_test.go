package flags

import (
	"slices"
	"testing"
)

var known = []Flag{
	{Name: "id", Value: true, Default: "none"}, {Name: "must", Value: true, Required: true}, {Name: "many", Multiple: true},
	{Name: "on", Forbids: []string{"off"}}, {Name: "off"}, {Name: "needs", Requires: "on"},
}

func TestParse(t *testing.T) {
	s, err := Parse(known, []string{"--must", "a", "--many", "1", "--many", "2", "--on", "--needs", "--", "--must", "x"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Value("id") != "none" || s.Value("must") != "a" || !slices.Equal(s.Values("many"), []string{"1", "2"}) || !s.Has("on") || s.Has("off") ||
		!slices.Equal(s.Extra, []string{"--must", "x"}) {
		t.Errorf("%+v", s)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, `MissingArgument("must")`},
		{[]string{"--must"}, `MissingValue("must")`},
		{[]string{"--must", "--on"}, `MissingValue("must")`},
		{[]string{"--must", "a", "--must", "b"}, `DuplicateArgument("must")`},
		{[]string{"--must=a"}, `UnexpectedArgument("must=a")`},
		{[]string{"-must", "a"}, `UnexpectedArgument("-must")`},
		{[]string{"--must", "a", "--needs"}, `MissingArgument("on")`},
		{[]string{"--must", "a", "--on", "--off"}, `ForbiddenArgument("on", "off")`},
	} {
		_, err := Parse(known, tc.args)
		if err == nil || err.Debug() != tc.want {
			t.Errorf("%q: %v, want %s", tc.args, err, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--must", "a", "--on")
	f.Add("--", "--help", "-h")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		s, err := Parse(known, []string{a, b, c})
		if (s == nil) == (err == nil) {
			t.Errorf("%v, %v", s, err)
		}
	})
}
