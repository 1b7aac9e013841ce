package frozen

import "github.com/sporevm/spore"

func changed(id string) error {
	return spore.Errorf(spore.CodeConflict, "%s was replaced meanwhile", id)
}
