package memory

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var controllers = layout[store.Controller]{
	key: func(c *store.Controller) key { return key{a: c.ID} },
}

var leases = layout[store.Lease]{
	key: func(l *store.Lease) key { return key{a: l.Name} },
	indexes: []index[store.Lease]{
		leaseController: func(l *store.Lease) (key, bool) { return key{a: l.Controller, b: l.Name}, true },
	},
}

const leaseController = 0

func fenced(id string) error {
	return spore.Errorf(spore.CodeConflict, "the controller %s was declared dead", id).
		WithHint("start it again").Because(spore.ReasonFenced)
}

func (tx *tx) controller(id string) *store.Controller {
	return tx.state.controllers.rows.get(key{a: id})
}

func (tx *tx) Beat(id string, now time.Time) error {
	if err := tx.writable(); err != nil {
		return err
	}
	keepTimes(&now)
	row := store.Controller{ID: id, StartedAt: now, SeenAt: now}
	if old := tx.controller(id); old != nil {
		if old.Fenced {
			return fenced(id)
		}
		row.StartedAt = old.StartedAt
	}
	if id == "" {
		return broken("controller", id, "it has no id")
	}
	controllers.put(&tx.state.controllers, tx.edit, &row)
	return nil
}

func (tx *tx) Controllers() ([]store.Controller, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	var list []store.Controller
	for c := range tx.state.controllers.rows.up(everything) {
		list = append(list, *c)
	}
	return list, nil
}

func (tx *tx) Fence(id string) error {
	if err := tx.writable(); err != nil {
		return err
	}
	old := tx.controller(id)
	if old == nil {
		return unknown("controller", id)
	}
	row := *old
	row.Fenced = true
	controllers.put(&tx.state.controllers, tx.edit, &row)
	for _, l := range tx.leasesOf(id) {
		leases.drop(&tx.state.leases, tx.edit, l)
	}
	tx.revive(false)
	return nil
}

func (tx *tx) Guard(id string) error {
	if err := tx.readable(); err != nil {
		return err
	}
	if c := tx.controller(id); c == nil || c.Fenced {
		return fenced(id)
	}
	return nil
}

func (tx *tx) PurgeControllers(before time.Time) (int, error) {
	if err := tx.writable(); err != nil {
		return 0, err
	}
	var old []*store.Controller
	for c := range tx.state.controllers.rows.up(everything) {
		if c.Fenced && nanos(c.SeenAt) < nanos(keepTime(before)) {
			old = append(old, c)
		}
	}
	for _, c := range old {
		controllers.drop(&tx.state.controllers, tx.edit, c)
	}
	return len(old), nil
}

func (tx *tx) TakeLease(l store.Lease, now time.Time) (bool, error) {
	if err := tx.writable(); err != nil {
		return false, err
	}
	if l.Name == "" || l.Holder == "" {
		return false, broken("lease", l.Name, "it names nothing or nobody")
	}
	if held := tx.state.leases.rows.get(leases.key(&l)); held != nil && held.Holder != l.Holder {
		c := tx.controller(held.Controller)
		if (c == nil || !c.Fenced) && nanos(keepTime(now)) < nanos(held.Until) {
			return false, nil
		}
	}
	keepTimes(&l.Until)
	leases.put(&tx.state.leases, tx.edit, &l)
	return true, nil
}

func (tx *tx) RenewLeases(controller string, until time.Time) error {
	if err := tx.writable(); err != nil {
		return err
	}
	for _, l := range tx.leasesOf(controller) {
		row := *l
		row.Until = keepTime(until)
		leases.put(&tx.state.leases, tx.edit, &row)
	}
	return nil
}

func (tx *tx) DropLease(name, holder string) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if l := tx.state.leases.rows.get(key{a: name}); l != nil && l.Holder == holder {
		leases.drop(&tx.state.leases, tx.edit, l)
	}
	return nil
}

func (tx *tx) Leases(controller string) ([]store.Lease, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	var list []store.Lease
	if controller == "" {
		for l := range tx.state.leases.rows.up(everything) {
			list = append(list, *l)
		}
		return list, nil
	}
	for _, l := range tx.leasesOf(controller) {
		list = append(list, *l)
	}
	return list, nil
}

func (tx *tx) leasesOf(controller string) []*store.Lease {
	var list []*store.Lease
	for l := range tx.state.leases.indexes[leaseController].up(group(controller)) {
		list = append(list, l)
	}
	return list
}
