package frozen

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/sporevm/spore"
)

// A sealed document is one line, "spore WHAT VERSION SHA256\n", and a JSON body. The sum covers WHAT, VERSION and the
// body, so that a flipped bit in the version is damage and not a document from the future.
const (
	whatManifest = "manifest"
	whatStamp    = "stamp"
	whatSeen     = "seen"
	whatPin      = "pin"
	whatLease    = "lease"
)

// maxDocument bounds what unseal is ever given; a manifest of a full chain is some 4 KiB.
const maxDocument = 4 << 20

// errNewer says that a document or file was written by a newer version of this package.
var errNewer = errors.New("written by a newer version")

func seal(what string, version int, value any) ([]byte, error) {
	body, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", what, err)
	}
	body = append(body, '\n')
	head := fmt.Sprintf("spore %s %d %s\n", what, version, sealSum(what, version, body))
	return append([]byte(head), body...), nil
}

func sealSum(what string, version int, body []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", what, version)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// unseal checks the seal and decodes the body into value. It fails with errNewer, intact but beyond the newest version
// known, or with an error that says what is broken.
func unseal(what string, newest int, data []byte, value any) error {
	head, body, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return errors.New("no seal")
	}
	words := bytes.Split(head, []byte{' '})
	if len(words) != 4 || string(words[0]) != "spore" || string(words[1]) != what {
		return fmt.Errorf("not a sealed %s", what)
	}
	version, err := strconv.Atoi(string(words[2]))
	if err != nil || version < 1 || strconv.Itoa(version) != string(words[2]) {
		return errors.New("malformed version")
	}
	if sealSum(what, version, body) != string(words[3]) {
		return errors.New("checksum does not match")
	}
	if version > newest {
		return fmt.Errorf("format %d: %w", version, errNewer)
	}
	if err := json.Unmarshal(body, value); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return nil
}

// damaged makes the refusal of something stored that is not what was written. subject names it: "piece mem-...".
func damaged(subject string, cause error) error {
	if errors.Is(cause, errNewer) {
		return spore.Errorf(spore.CodeUnsupported, "%s was written by a newer version of Spore", subject).
			WithCause(cause).WithHint("upgrade Spore on this machine; nothing was changed")
	}
	return spore.Errorf(spore.CodeDamaged, "%s is damaged: %v", subject, cause).
		WithCause(cause).WithHint("run spore fsck to see what stands on it; take it from another node or make it anew")
}
