package rows

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const controllerColumns = "id, started_at, seen_at, fenced"

func controllerFields(c *store.Controller) []any {
	return []any{&c.ID, asTime(&c.StartedAt), asTime(&c.SeenAt), asFlag(&c.Fenced)}
}

func (tx *Tx) Beat(id string, now time.Time) error {
	affected, err := tx.exec("INSERT INTO controllers ("+controllerColumns+") VALUES (?, ?, ?, 0)"+
		" ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at WHERE controllers.fenced = 0", id, nanos(now), nanos(now))
	if err == nil && affected == 0 {
		return fenced(id)
	}
	return err
}

func (tx *Tx) Controllers() ([]store.Controller, error) {
	return values(selectRows(tx, controllerFields, "SELECT "+controllerColumns+" FROM controllers ORDER BY id"))
}

func (tx *Tx) Fence(id string) error {
	affected, err := tx.exec("UPDATE controllers SET fenced = 1 WHERE id = ?", id)
	if err != nil {
		return err
	}
	if affected == 0 {
		return unknown("controller", id)
	}
	_, err = tx.exec("DELETE FROM leases WHERE controller_id = ?", id)
	return err
}

func (tx *Tx) Guard(id string) error {
	var n int
	// A controller whose row is gone was fenced, so long ago that it was purged.
	found, err := tx.scalar(&n, "SELECT 1 FROM controllers WHERE id = ? AND fenced = 0", id)
	if err == nil && !found {
		return fenced(id)
	}
	return err
}

func fenced(id string) error {
	return spore.Errorf(spore.CodeConflict, "the server %s was declared dead, and others have taken its work over", id).
		WithHint("start it again; it goes on under a new identity").Because(spore.ReasonFenced)
}

func (tx *Tx) PurgeControllers(before time.Time) (int, error) {
	affected, err := tx.exec("DELETE FROM controllers WHERE fenced = 1 AND seen_at < ?", nanos(before))
	return int(affected), err
}

const leaseColumns = "name, holder, controller_id, ends_at"

func leaseFields(l *store.Lease) []any {
	return []any{&l.Name, &l.Holder, &l.Controller, asTime(&l.Until)}
}

var takeLease = upsertion("leases", "name", leaseColumns) + ` WHERE leases.holder = excluded.holder OR leases.ends_at <= ?
	OR EXISTS (SELECT 1 FROM controllers WHERE id = leases.controller_id AND fenced = 1)`

func (tx *Tx) TakeLease(l store.Lease, now time.Time) (bool, error) {
	affected, err := tx.exec(takeLease, append(leaseFields(&l), nanos(now))...)
	return affected > 0, err
}

func (tx *Tx) RenewLeases(controller string, until time.Time) error {
	_, err := tx.exec("UPDATE leases SET ends_at = ? WHERE controller_id = ?", nanos(until), controller)
	return err
}

func (tx *Tx) DropLease(name, holder string) error {
	_, err := tx.exec("DELETE FROM leases WHERE name = ? AND holder = ?", name, holder)
	return err
}

func (tx *Tx) Leases(controller string) ([]store.Lease, error) {
	l := &listing{table: "leases"}
	l.andText("controller_id", controller)
	source, args := l.source()
	return values(selectRows(tx, leaseFields, "SELECT "+leaseColumns+source+" ORDER BY name", args...))
}
