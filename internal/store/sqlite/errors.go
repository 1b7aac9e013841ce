package sqlite

import (
	"errors"
	"fmt"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store/rows"
)

// translate gives SQLite's errors the meaning that the rest of Spore knows. Others pass through as they are.
func translate(err error) error {
	var e *driver.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() {
	case lib.SQLITE_CONSTRAINT_UNIQUE, lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fmt.Errorf("%w (%w)", rows.ErrUnique, err)
	case lib.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fmt.Errorf("%w (%w)", rows.ErrReference, err)
	}
	const primary = 0xff // the rest of a code tells kinds of the same error apart
	switch e.Code() & primary {
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return spore.Errorf(spore.CodeDamaged, "the database file is damaged").WithCause(err).
			WithHint("stop the server and restore spore.db from a backup")
	case lib.SQLITE_FULL:
		return spore.Errorf(spore.CodeNoSpace, "the disk that holds the database is full").WithCause(err).
			WithHint("make room on it, then try again")
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return spore.Errorf(spore.CodeBusy, "another process is using the database").WithCause(err).
			WithHint("end the other process, or try again in a moment")
	}
	return err
}

// endsTransaction says whether err means that SQLite may have rolled the whole transaction back by itself.
func endsTransaction(err error) bool {
	var e *driver.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_FULL, lib.SQLITE_IOERR, lib.SQLITE_NOMEM, lib.SQLITE_BUSY, lib.SQLITE_INTERRUPT, lib.SQLITE_CORRUPT:
		return true
	}
	return false
}
