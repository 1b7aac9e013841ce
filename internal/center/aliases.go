package center

import (
	"context"
	"strings"
	"unicode/utf8"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Bounds of what people write about a change, in bytes.
const (
	maxAuthor = 256
	maxReason = 1024
)

// checkWords refuses an author or a reason that cannot be kept.
func checkWords(author, reason string) error {
	for _, w := range []struct {
		field, text string
		most        int
	}{{"author", author, maxAuthor}, {"reason", reason, maxReason}} {
		if len(w.text) > w.most || !utf8.ValidString(w.text) || strings.ContainsRune(w.text, 0) {
			return spore.Invalidf(w.field, "it is too long, or no text").WithHint("at most %d bytes of UTF-8", w.most)
		}
	}
	return nil
}

// aliasName checks a name and tag, and fills in the tag that is meant by none.
func aliasName(name, tag string) (string, string, error) {
	if tag == "" {
		tag = spore.DefaultTag
	}
	return spore.ParseAlias("alias", name+":"+tag)
}

// PutAlias points name:tag at a template or snapshot. Whoever looks it up gets the old one or the new one. Pointing it where
// it points already, in the same words, changes nothing.
func (c *Center) PutAlias(ctx context.Context, name, tag string, req AliasRequest) (a *spore.Alias, err error) {
	if name, tag, err = aliasName(name, tag); err != nil {
		return nil, err
	}
	if err := checkWords(req.Author, req.Reason); err != nil {
		return nil, err
	}
	if req.Template == "" {
		return nil, spore.Invalidf("template", "no template given").Because(spore.ReasonTemplateIDRequired)
	}
	err = c.update(ctx, func(tx store.Tx) error {
		t, err := tx.FindTemplate(req.Template)
		if err != nil {
			return err
		}
		if err := mayBeAliased(t); err != nil {
			return err
		}
		a = &spore.Alias{Name: name, Tag: tag, TemplateID: t.ID, Author: req.Author, Reason: req.Reason, UpdatedAt: c.opt.Now()}
		old, err := tx.Alias(name, tag)
		if err != nil && !isNotFound(err) {
			return err
		}
		if old != nil && old.TemplateID == a.TemplateID && old.Author == a.Author && old.Reason == a.Reason {
			a = old
			return nil
		}
		return tx.PutAlias(*a)
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// mayBeAliased refuses what a name must not lead to. One that is still being made is fine: the name then leads to it before it is done.
func mayBeAliased(t *spore.Template) error {
	switch {
	case t.Ephemeral:
		return spore.Errorf(spore.CodeConflict, "%s belongs to a fork and goes with it", t.ID).
			WithHint("make a snapshot that stays: spore snapshot create %s", t.OriginSandbox)
	case t.Status == spore.TemplateFailed:
		return t.Startable()
	}
	return nil
}

// Alias answers what name:tag points at.
func (c *Center) Alias(ctx context.Context, name, tag string) (a *spore.Alias, err error) {
	if name, tag, err = aliasName(name, tag); err != nil {
		return nil, err
	}
	err = c.store.View(ctx, func(tx store.Tx) error { a, err = tx.Alias(name, tag); return err })
	return a, err
}

// DeleteAlias removes name:tag. What it pointed at stays, and so does its history.
func (c *Center) DeleteAlias(ctx context.Context, name, tag, author, reason string) (err error) {
	if name, tag, err = aliasName(name, tag); err != nil {
		return err
	}
	if err := checkWords(author, reason); err != nil {
		return err
	}
	return c.update(ctx, func(tx store.Tx) error {
		if _, err := tx.Alias(name, tag); err != nil {
			return err
		}
		return tx.DeleteAlias(spore.Alias{Name: name, Tag: tag, Author: author, Reason: reason, UpdatedAt: c.opt.Now()})
	})
}

// Aliases lists aliases in the order of name and tag.
func (c *Center) Aliases(ctx context.Context, q AliasQuery) (list []*spore.Alias, next string, err error) {
	err = c.store.View(ctx, func(tx store.Tx) error {
		f := store.AliasFilter{Paging: store.Paging{Limit: q.Limit, After: q.PageToken}, Name: q.Name}
		if q.Template != "" {
			t, err := tx.FindTemplate(q.Template)
			if err != nil {
				return err
			}
			f.TemplateID = t.ID
		}
		var page store.Page
		list, page, err = tx.Aliases(f)
		next = page.Next
		return err
	})
	return list, next, err
}

// AliasHistory answers the changes of name:tag, or with tag "" of all tags of name, newest first. A name that never was one
// is spore.CodeNotFound.
func (c *Center) AliasHistory(ctx context.Context, name, tag string, limit int) (changes []spore.AliasChange, err error) {
	if _, _, err := aliasName(name, tag); err != nil {
		return nil, err
	}
	err = c.store.View(ctx, func(tx store.Tx) error { changes, err = tx.AliasHistory(name, tag, limit); return err })
	if err == nil && len(changes) == 0 {
		return nil, spore.Errorf(spore.CodeNotFound, "there has never been an alias %s", strings.TrimSuffix(name+":"+tag, ":")).
			WithHint("see which there are: spore alias ls")
	}
	return changes, err
}
