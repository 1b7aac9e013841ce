package spore

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
)

// Prefixes of the ids. Templates and snapshots share one namespace: an operation that takes a template id takes a
// snapshot id as well.
const (
	TemplatePrefix = "tpl-"
	SnapshotPrefix = "snap-"
	ArtifactPrefix = "rfs-"
	KernelPrefix   = "krn-"
	JobPrefix      = "job-"
)

// NewTemplateID returns a fresh id for a template: "tpl-" and 24 hex digits.
func NewTemplateID() string { return TemplatePrefix + randomHex(12) }

// NewSnapshotID returns a fresh id for a snapshot: "snap-" and 24 hex digits.
func NewSnapshotID() string { return SnapshotPrefix + randomHex(12) }

// NewJobID returns a fresh id for a job: "job-" and 24 hex digits.
func NewJobID() string { return JobPrefix + randomHex(12) }

// NewSandboxID returns a fresh id for a sandbox. It is one DNS label made of [a-z0-9] only, because clients build
// host names of the form PORT-ID.DOMAIN from it.
func NewSandboxID() string { return "s" + randomHex(10) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b)
}

var nameForm = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$`)

// ValidateName says whether name can name a template or a snapshot: 1 to 64 lower-case letters, digits and dashes,
// neither first nor last a dash, and not something that reads like an id.
func ValidateName(field, name string) error {
	if !nameForm.MatchString(name) {
		return Invalidf(field, "%q is not a valid name", name).
			WithHint("use 1 to 64 lower-case letters, digits and dashes; begin and end with a letter or digit")
	}
	if idForm.MatchString(name) {
		return Invalidf(field, "%q reads like an id", name).WithHint("choose a name that does not begin with tpl-, snap-, rfs-, krn- or job-")
	}
	return nil
}

var idForm = regexp.MustCompile(`^(tpl|snap|rfs|krn|job)-`)
