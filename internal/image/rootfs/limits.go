package rootfs

import (
	"cmp"
	"fmt"

	spore "github.com/sporevm/spore"
)

// Limits bound what an image may ask for. A zero field stands for its default.
type Limits struct {
	LayerBytes    int64 // uncompressed, of one layer; default 64 GiB
	TotalBytes    int64 // uncompressed, of all layers; default 64 GiB
	Entries       int64 // in all layers; default 4 Mi
	MetadataBytes int64 // names, link targets and extended attributes of all layers; default 1 GiB
	PathLength    int   // of an entry's name, in bytes; default 4096
}

// WithDefaults fills in what is zero.
func (l Limits) WithDefaults() Limits {
	return Limits{
		LayerBytes:    cmp.Or(l.LayerBytes, 64<<30),
		TotalBytes:    cmp.Or(l.TotalBytes, 64<<30),
		Entries:       cmp.Or(l.Entries, 4<<20),
		MetadataBytes: cmp.Or(l.MetadataBytes, 1<<30),
		PathLength:    cmp.Or(l.PathLength, 4096),
	}
}

// badEntry is the refusal of one entry of a layer.
func badEntry(layer, entry, format string, args ...any) error {
	return spore.Errorf(spore.CodeInvalid, "layer %s, entry %q: %w", layer, entry, fmt.Errorf(format, args...)).
		WithHint("the image is malformed or hostile; build it again with a current tool")
}

// overLimit is the refusal of a layer that is too large in some way.
func overLimit(layer, what string, limit int64) error {
	return spore.Errorf(spore.CodeInvalid, "layer %s has more than the allowed %d %s", layer, limit, what).
		WithHint("use a smaller image, or raise the server's image limits")
}
