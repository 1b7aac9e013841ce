package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/postgres"
	"github.com/sporevm/spore/internal/store/sqlite"
)

// errFenced ends a server that another one has taken for dead: what it was at is theirs.
var errFenced = spore.Errorf(spore.CodeConflict, "another server on the same database has taken this one for dead, and taken over").
	WithHint("start it again").Because(spore.ReasonFenced)

// identity is who a server is among those that share its database.
type identity struct {
	id          string
	predecessor string // the last server on this data directory, which is dead
	alone       bool   // nobody else can have the database
}

const controllerFile = "controller"

// openStore opens the database that cfg names, under an identity that is written down first.
func openStore(ctx context.Context, cfg Config, dir *dataDir) (store.Store, identity, error) {
	url, err := cfg.Database()
	if err != nil {
		return nil, identity{}, err
	}
	who := identity{id: center.NewControllerID(), alone: url == ""}
	last, err := os.ReadFile(dir.join(controllerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, who, err
	}
	who.predecessor = strings.TrimSpace(string(last))
	if err := writeFile(dir.join(controllerFile), []byte(who.id+"\n")); err != nil {
		return nil, who, err
	}
	if who.alone {
		st, err := sqlite.Open(ctx, dir.join("spore.db"), sqlite.Options{Logger: cfg.Logger})
		return st, who, err
	}
	st, err := postgres.Open(ctx, postgres.Options{URL: url, Controller: who.id, Logger: cfg.Logger})
	return st, who, err
}
