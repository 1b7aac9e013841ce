package rootfs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"slices"
	"strings"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/image/ext4"
)

// trustBundles are the files from which programs read the certificates they trust. Other paths are symlinks to these.
var trustBundles = []string{
	"etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, and Go programs everywhere
	"etc/pki/tls/certs/ca-bundle.crt",                  // RHEL
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL, where the one above usually points
}

const debianAnchors = "usr/local/share/ca-certificates"

// anchorDirs hold certificates that a distribution's own tool adds whenever it makes the bundle anew.
var anchorDirs = []string{
	debianAnchors,
	"etc/pki/ca-trust/source/anchors",
	"usr/share/pki/trust/anchors",
}

// debianMarks show that a system makes its bundle the Debian way, even if it has no anchor directory yet.
var debianMarks = []string{"usr/sbin/update-ca-certificates", "etc/ca-certificates.conf", "usr/share/ca-certificates"}

// What is read to look for a certificate is bounded: it is held in memory.
const (
	maxBundle      = 8 << 20
	maxAnchor      = 64 << 10
	maxAnchorFiles = 1024 // in one directory
)

// CA is the certificate of an egress proxy.
type CA struct {
	Fingerprint string // SHA-256 of the DER form, in hex

	der []byte
	pem []byte
}

// ParseCA reads one certificate in PEM form. It refuses anything else with a CodeInvalid error on the field egressCA.
func ParseCA(data []byte) (*CA, error) {
	refuse := func(format string, args ...any) error {
		return spore.Invalidf("egressCA", format, args...).
			WithHint("give the proxy's root certificate as one PEM block, from -----BEGIN CERTIFICATE----- on")
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, refuse("there is no PEM block in it")
	}
	if block.Type != "CERTIFICATE" {
		return nil, refuse("it holds a PEM block of type %q, not a certificate", block.Type)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, refuse("it holds more than one PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, refuse("it holds a malformed certificate: %v", err)
	}
	if cert.BasicConstraintsValid && !cert.IsCA {
		return nil, refuse("the certificate is not one of a certificate authority")
	}
	sum := sha256.Sum256(block.Bytes)
	return &CA{
		Fingerprint: hex.EncodeToString(sum[:]),
		der:         block.Bytes,
		pem:         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}),
	}, nil
}

// FileReader returns the content of regular files of the tree that come from layers.
type FileReader func(files []*ext4.Node) (map[*ext4.Node][]byte, error)

// BakeCA makes the system in the tree trust a certificate: it appends it to the trust bundles that exist, puts it into
// the anchor directories that the distribution uses, and gives an image without any bundle one of its own. A file
// that already holds the certificate is left alone. It returns the paths that it has written.
func (t *Tree) BakeCA(ca *CA, read FileReader) ([]string, error) {
	plan, err := t.planBake()
	if err != nil {
		return nil, err
	}
	content, err := read(slices.Collect(maps.Keys(plan.read)))
	if err != nil {
		return nil, err
	}
	var written []string
	for _, b := range plan.bundles {
		old := content[b.node]
		if ca.in(old) {
			continue
		}
		if len(old) > 0 && old[len(old)-1] != '\n' {
			old = append(old, '\n')
		}
		t.setContent(b.node, append(slices.Clip(old), ca.pem...))
		written = append(written, "/"+b.path)
	}
	if path := trustBundles[0]; plan.seed {
		if err := t.addFile(path, ca.pem); err != nil {
			return nil, err
		}
		written = append(written, "/"+path)
	}
	for _, a := range plan.anchors {
		if slices.ContainsFunc(a.present, func(n *ext4.Node) bool { return ca.in(content[n]) }) {
			continue
		}
		path := a.path + "/spore-egress-" + ca.Fingerprint[:16] + ".crt"
		if err := t.addFile(path, ca.pem); err != nil {
			return nil, err
		}
		written = append(written, "/"+path)
	}
	t.forget()
	return written, nil
}

// bakePlan lists what BakeCA will look at.
type bakePlan struct {
	bundles []bundle
	anchors []anchorDir
	read    map[*ext4.Node]bool
	seed    bool // there is no bundle, and nothing in the way of one
}

type bundle struct {
	path string
	node *ext4.Node
}

type anchorDir struct {
	path    string
	present []*ext4.Node
}

func (t *Tree) planBake() (bakePlan, error) {
	plan := bakePlan{read: map[*ext4.Node]bool{}, seed: true}
	for _, path := range trustBundles {
		n := t.find(path)
		if n == nil || plan.read[n] { // two paths may lead to one file
			continue
		}
		plan.seed = false
		if n.Type() != ext4.TypeRegular {
			continue
		}
		if n.Size > maxBundle {
			return plan, spore.Errorf(spore.CodeInvalid, "the image's trust bundle /%s has %d bytes, more than the allowed %d", path, n.Size, maxBundle).
				WithHint("build without an egress certificate, or repair the image")
		}
		plan.read[n] = true
		plan.bundles = append(plan.bundles, bundle{path, n})
	}
	for _, path := range anchorDirs {
		dir := t.find(path)
		if dir == nil && path == debianAnchors && t.isDebian() {
			plan.anchors = append(plan.anchors, anchorDir{path: path})
			continue
		}
		if dir == nil || !dir.IsDir() {
			continue
		}
		a := anchorDir{path: path}
		for _, name := range slices.Sorted(maps.Keys(dir.Children)) {
			n := t.find(path + "/" + name)
			if n != nil && n.Type() == ext4.TypeRegular && n.Size <= maxAnchor && len(a.present) < maxAnchorFiles {
				a.present = append(a.present, n)
				plan.read[n] = true
			}
		}
		plan.anchors = append(plan.anchors, a)
	}
	return plan, nil
}

func (t *Tree) isDebian() bool {
	return slices.ContainsFunc(debianMarks, func(path string) bool { return t.find(path) != nil })
}

// in says whether data, PEM blocks or one DER certificate, holds the certificate.
func (ca *CA) in(data []byte) bool {
	if bytes.Equal(data, ca.der) {
		return true
	}
	for len(data) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return false
		}
		if bytes.Equal(block.Bytes, ca.der) {
			return true
		}
	}
	return false
}

// addFile makes a file of mode 0644 that belongs to root, and the directories it needs.
func (t *Tree) addFile(path string, content []byte) error {
	parts := strings.Split(path, "/")
	dir, err := t.dir(parts[:len(parts)-1], true)
	if err != nil {
		return spore.Errorf(spore.CodeInvalid, "cannot write /%s into the image: %w", path, err)
	}
	n := &ext4.Node{Mode: ext4.TypeRegular | 0o644}
	dir.Children[parts[len(parts)-1]] = n
	t.forget()
	t.setContent(n, content)
	return nil
}

// setContent replaces what a regular file holds, under all its names.
func (t *Tree) setContent(n *ext4.Node, content []byte) {
	n.Size = int64(len(content))
	n.Runs = nil
	if blocks := (len(content) + ext4.BlockSize - 1) / ext4.BlockSize; blocks > 0 {
		n.Runs = []ext4.Run{{Start: 0, Count: uint32(blocks)}}
	}
	n.Order = 1<<63 | uint64(len(t.added)) // behind the content of all layers
	t.added[n] = content
}
