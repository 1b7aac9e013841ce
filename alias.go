package spore

import (
	"regexp"
	"strings"
	"time"
)

// DefaultTag is the tag of a name that is given without one.
const DefaultTag = "latest"

// Alias is a name:tag that points at a template or snapshot and can be pointed at another in one step.
type Alias struct {
	Name       string
	Tag        string
	TemplateID string
	Author     string
	Reason     string
	UpdatedAt  time.Time
}

// Label is how people write it: the tag is left out when it is the default.
func (a Alias) Label() string {
	if a.Tag == DefaultTag {
		return a.Name
	}
	return a.Name + ":" + a.Tag
}

// AliasChange is one entry of an alias's history. An empty TemplateID: the alias was removed then.
type AliasChange struct {
	Seq int64
	Alias
}

var tagForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// ParseAlias reads "name" or "name:tag".
func ParseAlias(field, s string) (name, tag string, err error) {
	name, tag, tagged := strings.Cut(s, ":")
	if err := ValidateName(field, name); err != nil {
		return "", "", err
	}
	if !tagged {
		return name, DefaultTag, nil
	}
	if !tagForm.MatchString(tag) {
		return "", "", Invalidf(field, "%q is not a valid tag", tag).
			WithHint("use 1 to 64 letters, digits, dots, dashes and underscores; begin with a letter, digit or underscore")
	}
	return name, tag, nil
}
