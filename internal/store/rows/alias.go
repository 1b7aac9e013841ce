package rows

import (
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const (
	aliasColumns   = "name, tag, template_id, author, reason, updated_at"
	historyColumns = "seq, " + aliasColumns
)

var (
	upsertAlias   = upsertion("aliases", "name, tag", aliasColumns)
	insertHistory = insert("alias_history", aliasColumns)
)

func aliasFields(a *spore.Alias) []any {
	return []any{&a.Name, &a.Tag, &a.TemplateID, asText(&a.Author), asText(&a.Reason), asTime(&a.UpdatedAt)}
}

func historyFields(c *spore.AliasChange) []any {
	return append([]any{&c.Seq}, aliasFields(&c.Alias)...)
}

func (tx *Tx) PutAlias(a spore.Alias) error {
	if err := tx.writable(); err != nil {
		return err
	}
	var holder string
	live, err := tx.scalar(&holder, "SELECT id FROM templates WHERE id = ? AND "+templateLive, a.TemplateID)
	if err != nil {
		return err
	}
	if !live {
		return unknown("template", a.TemplateID)
	}
	taken, err := tx.scalar(&holder, holderOfName, a.Name, "")
	if err != nil {
		return err
	}
	if taken {
		return spore.Errorf(spore.CodeConflict, "%s is the name of %s itself and cannot be pointed elsewhere", a.Name, holder).
			WithHint("choose another name for the alias").Because(spore.ReasonDuplicate)
	}
	if _, err := tx.exec(upsertAlias, aliasFields(&a)...); err != nil {
		return err
	}
	return tx.note(a)
}

// note adds an entry to the history of an alias.
func (tx *Tx) note(a spore.Alias) error {
	_, err := tx.exec(insertHistory, aliasFields(&a)...)
	return err
}

func (tx *Tx) Alias(name, tag string) (*spore.Alias, error) {
	a, err := selectOne(tx, aliasFields, "SELECT "+aliasColumns+" FROM aliases WHERE name = ? AND tag = ?", name, tag)
	if err == nil && a == nil {
		return nil, unknown("alias", spore.Alias{Name: name, Tag: tag}.Label())
	}
	return a, err
}

func (tx *Tx) DeleteAlias(a spore.Alias) error {
	affected, err := tx.exec("DELETE FROM aliases WHERE name = ? AND tag = ?", a.Name, a.Tag)
	switch {
	case err != nil:
		return err
	case affected == 0:
		return unknown("alias", a.Label())
	}
	a.TemplateID = ""
	return tx.note(a)
}

// dropAliases removes what points at a template that goes.
func (tx *Tx) dropAliases(templateID string, when time.Time) error {
	list, err := selectRows(tx, aliasFields, "SELECT "+aliasColumns+" FROM aliases WHERE template_id = ? ORDER BY name, tag", templateID)
	if err != nil {
		return err
	}
	for _, a := range list {
		err := tx.DeleteAlias(spore.Alias{Name: a.Name, Tag: a.Tag, Reason: "what it pointed at was deleted: " + templateID, UpdatedAt: when})
		if err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) Aliases(f store.AliasFilter) ([]*spore.Alias, store.Page, error) {
	l := &listing{table: "aliases", columns: aliasColumns, order: []string{"name", "tag"}, ascending: true}
	l.andText("name", f.Name)
	l.andText("template_id", f.TemplateID)
	return selectPage(tx, l, f.Paging, aliasFields, func(a *spore.Alias) []any { return []any{a.Name, a.Tag} })
}

func (tx *Tx) AliasHistory(name, tag string, limit int) ([]spore.AliasChange, error) {
	if limit <= 0 || limit > maxLimit {
		limit = maxLimit
	}
	l := &listing{table: "alias_history"}
	l.and("name = ?", name)
	if tag != "" {
		l.and("tag = ?", tag)
	}
	source, args := l.source()
	return values(selectRows(tx, historyFields, "SELECT "+historyColumns+source+" ORDER BY seq DESC LIMIT ?", append(args, limit)...))
}
