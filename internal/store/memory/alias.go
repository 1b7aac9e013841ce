package memory

import (
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var aliases = layout[spore.Alias]{
	key: func(a *spore.Alias) key { return key{a: a.Name, b: a.Tag} },
	indexes: []index[spore.Alias]{
		// The zero byte is below all others, so the text is in the order of name and tag.
		aliasTemplate: func(a *spore.Alias) (key, bool) { return key{a: a.TemplateID, b: a.Name + "\x00" + a.Tag}, true },
	},
}

const aliasTemplate = 0

var history = layout[spore.AliasChange]{
	key: func(c *spore.AliasChange) key { return key{a: c.Name, n: c.Seq} },
}

func (tx *tx) PutAlias(a spore.Alias) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if t := tx.template(a.TemplateID); t == nil || !templateLive(t) {
		return unknown("template", a.TemplateID)
	}
	if t := tx.state.templates.indexes[templateName].get(key{a: a.Name}); t != nil {
		return spore.Errorf(spore.CodeConflict, "the name %s is taken by %s", a.Name, t.ID).
			WithHint("choose another name, or delete %s first", t.ID).Because(spore.ReasonDuplicate)
	}
	a = keepAlias(a)
	aliases.put(&tx.state.aliases, tx.edit, &a)
	tx.remember(a)
	return nil
}

func keepAlias(a spore.Alias) spore.Alias {
	keepText(&a.Author, &a.Reason)
	keepTimes(&a.UpdatedAt)
	return a
}

func (tx *tx) remember(a spore.Alias) {
	tx.state.lastAlias++
	history.put(&tx.state.history, tx.edit, &spore.AliasChange{Seq: tx.state.lastAlias, Alias: a})
}

func (tx *tx) Alias(name, tag string) (*spore.Alias, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	a := tx.state.aliases.rows.get(key{a: name, b: tag})
	if a == nil {
		return nil, unknown("alias", spore.Alias{Name: name, Tag: tag}.Label())
	}
	out := *a
	return &out, nil
}

func (tx *tx) DeleteAlias(a spore.Alias) error {
	if err := tx.writable(); err != nil {
		return err
	}
	old := tx.state.aliases.rows.get(key{a: a.Name, b: a.Tag})
	if old == nil {
		return unknown("alias", a.Label())
	}
	aliases.drop(&tx.state.aliases, tx.edit, old)
	a = keepAlias(a)
	a.TemplateID = ""
	tx.remember(a)
	return nil
}

// dropAliasesOf removes the aliases of a template that is no longer live.
func (tx *tx) dropAliasesOf(t *spore.Template) {
	var gone []*spore.Alias
	for a := range tx.state.aliases.indexes[aliasTemplate].up(group(t.ID)) {
		gone = append(gone, a)
	}
	for _, a := range gone {
		aliases.drop(&tx.state.aliases, tx.edit, a)
		tx.remember(keepAlias(spore.Alias{Name: a.Name, Tag: a.Tag, Reason: "what it pointed at was deleted: " + t.ID, UpdatedAt: t.UpdatedAt}))
	}
}

// isAliasOf says whether a name, or name:tag, points at a template.
func (tx *tx) isAliasOf(ref, templateID string) bool {
	name, tag, tagged := strings.Cut(ref, ":")
	if tagged {
		a := tx.state.aliases.rows.get(key{a: name, b: tag})
		return a != nil && a.TemplateID == templateID
	}
	for a := range tx.state.aliases.rows.up(group(name)) {
		if a.TemplateID == templateID {
			return true
		}
	}
	return false
}

func (tx *tx) Aliases(f store.AliasFilter) ([]*spore.Alias, store.Page, error) {
	if err := tx.readable(); err != nil {
		return nil, store.Page{}, err
	}
	all := &tx.state.aliases
	l := &listing[spore.Alias]{
		list: "aliases", rows: all.rows, span: everything, at: aliases.key,
		matches: func(a *spore.Alias) bool { return fits(f.Name, a.Name) && fits(f.TemplateID, a.TemplateID) },
	}
	switch {
	case f.TemplateID != "":
		l.rows, l.span = all.indexes[aliasTemplate], group(f.TemplateID)
		l.place = func(k key) key { return key{a: f.TemplateID, b: k.a + "\x00" + k.b} }
	case f.Name != "":
		l.span = group(f.Name)
	}
	return l.page(f.Paging, func(a *spore.Alias) *spore.Alias { out := *a; return &out })
}

func (tx *tx) AliasHistory(name, tag string, limit int) ([]spore.AliasChange, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	if limit <= 0 || limit > maxLimit {
		limit = maxLimit
	}
	var list []spore.AliasChange
	for c := range tx.state.history.rows.down(group(name)) {
		if tag != "" && c.Tag != tag {
			continue
		}
		if len(list) == limit {
			break
		}
		list = append(list, *c)
	}
	return list, nil
}
