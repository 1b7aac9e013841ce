package procmem

import "github.com/sporevm/spore"

// CanTrack says whether Track works on this host: nil, or spore.CodeUnsupported with the reason.
func CanTrack() error {
	ok, err := softDirty()
	if err == nil && !ok {
		err = spore.Errorf(spore.CodeUnsupported, "this kernel does not record which pages are written")
	}
	return err
}
