package memory

import (
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

var templates = layout[spore.Template]{
	key: func(t *spore.Template) key { return key{a: t.ID} },
	indexes: []index[spore.Template]{
		templatePage: func(t *spore.Template) (key, bool) { return templateAt(t), true },
		templateName: func(t *spore.Template) (key, bool) { return key{a: t.Name}, t.Name != "" && templateLive(t) },
		templateOrigin: func(t *spore.Template) (key, bool) {
			return key{t.OriginSandbox, nanos(t.CreatedAt), t.ID}, t.OriginSandbox != ""
		},
		templateParent: func(t *spore.Template) (key, bool) {
			return key{t.ParentID, nanos(t.CreatedAt), t.ID}, t.ParentID != ""
		},
		templateArtifact: func(t *spore.Template) (key, bool) {
			return key{t.ArtifactID, nanos(t.CreatedAt), t.ID}, t.ArtifactID != ""
		},
	},
}

const (
	templatePage = iota
	templateName
	templateOrigin
	templateParent
	templateArtifact
)

func templateAt(t *spore.Template) key { return key{n: nanos(t.CreatedAt), b: t.ID} }

func templateLive(t *spore.Template) bool {
	return t.Status != spore.TemplateDeleting && t.Status != spore.TemplateDeleted
}

func checkTemplate(t *spore.Template) error {
	switch {
	case t.ID == "":
		return broken("template", t.ID, "it has no id")
	case t.Kind != spore.KindTemplate && t.Kind != spore.KindSnapshot:
		return broken("template", t.ID, "there is no such kind")
	}
	return birth(spore.TemplateTransitions, "template", t.ID, t.Status)
}

func (tx *tx) InsertTemplate(t *spore.Template) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if err := tx.pointedElsewhere(t); err != nil {
		return err
	}
	if err := checkTemplate(t); err != nil {
		return err
	}
	if tx.template(t.ID) != nil {
		return spore.Errorf(spore.CodeConflict, "the id %s is taken", t.ID).Because(spore.ReasonDuplicate)
	}
	if err := tx.nameTaken(t); err != nil {
		return err
	}
	templates.put(&tx.state.templates, tx.edit, keepTemplate(t))
	return nil
}

// nameTaken is an error when t is live and its name is another live template's.
func (tx *tx) nameTaken(t *spore.Template) error {
	if t.Name == "" || !templateLive(t) {
		return nil
	}
	if other := tx.state.templates.indexes[templateName].get(key{a: t.Name}); other != nil && other.ID != t.ID {
		return spore.Errorf(spore.CodeConflict, "the name %s is taken by %s", t.Name, other.ID).
			WithHint("choose another name, or delete %s first", other.ID).Because(spore.ReasonDuplicate)
	}
	return nil
}

// pointedElsewhere is an error when t is live and its name is an alias.
func (tx *tx) pointedElsewhere(t *spore.Template) error {
	if t.Name == "" || !templateLive(t) {
		return nil
	}
	for a := range tx.state.aliases.rows.up(group(t.Name)) {
		return spore.Errorf(spore.CodeConflict, "the name %s is taken by the alias %s", t.Name, a.Label()).
			WithHint("choose another name, or remove the alias first").Because(spore.ReasonDuplicate)
	}
	return nil
}

func (tx *tx) template(id string) *spore.Template { return tx.state.templates.rows.get(key{a: id}) }

func (tx *tx) Template(id string) (*spore.Template, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	t := tx.template(id)
	if t == nil {
		return nil, unknown("template", id)
	}
	return copyTemplate(t), nil
}

func (tx *tx) FindTemplate(ref string) (*spore.Template, error) {
	if err := tx.readable(); err != nil {
		return nil, err
	}
	t := tx.find(ref)
	if t == nil || !templateLive(t) {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no template or snapshot %q", ref).Because(notFoundReason(ref))
	}
	return copyTemplate(t), nil
}

func (tx *tx) find(ref string) *spore.Template {
	if strings.HasPrefix(ref, spore.TemplatePrefix) || strings.HasPrefix(ref, spore.SnapshotPrefix) { // no name looks like that
		return tx.template(ref)
	}
	name, tag, tagged := strings.Cut(ref, ":")
	if !tagged {
		if t := tx.state.templates.indexes[templateName].get(key{a: name}); t != nil {
			return t
		}
		tag = spore.DefaultTag
	}
	if a := tx.state.aliases.rows.get(key{a: name, b: tag}); a != nil {
		return tx.template(a.TemplateID)
	}
	return nil
}

func (tx *tx) UpdateTemplate(t *spore.Template) error {
	if err := tx.writable(); err != nil {
		return err
	}
	old := tx.template(t.ID)
	var from *spore.TemplateStatus
	if old != nil {
		from = &old.Status
	}
	if err := transition(spore.TemplateTransitions, "template", t.ID, from, t.Status); err != nil {
		return err
	}
	if err := tx.pointedElsewhere(t); err != nil {
		return err
	}
	if err := checkTemplate(t); err != nil {
		return err
	}
	if err := tx.nameTaken(t); err != nil {
		return err
	}
	templates.put(&tx.state.templates, tx.edit, keepTemplate(t))
	if templateLive(old) && !templateLive(t) {
		tx.dropAliasesOf(t)
	}
	return nil
}

func (tx *tx) Templates(f store.TemplateFilter) ([]*spore.Template, store.Page, error) {
	if err := tx.readable(); err != nil {
		return nil, store.Page{}, err
	}
	return tx.templateListing(&f).page(f.Paging, copyTemplate)
}

func (tx *tx) CountTemplates(f store.TemplateFilter, limit int) (int, error) {
	if err := tx.readable(); err != nil {
		return 0, err
	}
	return tx.templateListing(&f).count(limit), nil
}

func (tx *tx) templateListing(f *store.TemplateFilter) *listing[spore.Template] {
	all := &tx.state.templates
	l := &listing[spore.Template]{list: "templates", newest: true, at: templateAt}
	switch {
	case f.OriginSandbox != "":
		l.inGroup(all.indexes[templateOrigin], f.OriginSandbox)
	case f.ParentID != "":
		l.inGroup(all.indexes[templateParent], f.ParentID)
	case f.ArtifactID != "":
		l.inGroup(all.indexes[templateArtifact], f.ArtifactID)
	default:
		l.inGroup(all.indexes[templatePage], "")
	}
	l.matches = func(t *spore.Template) bool {
		return (f.Deleted || templateLive(t)) &&
			(t.Ephemeral || !f.EphemeralOnly) && (!t.Ephemeral || f.Ephemeral || f.EphemeralOnly) &&
			fits(f.ID, t.ID) && fits(f.Kind, t.Kind) && fits(f.Status, t.Status) &&
			fits(f.OriginSandbox, t.OriginSandbox) && fits(f.ParentID, t.ParentID) && fits(f.ArtifactID, t.ArtifactID) &&
			(f.CreatedBefore.IsZero() || nanos(t.CreatedAt) < nanos(keepTime(f.CreatedBefore))) &&
			hasLabels(t.Labels, f.Labels) &&
			(f.Name == "" || t.Name == f.Name || t.DisplayName == f.Name || tx.isAliasOf(f.Name, t.ID))
	}
	return l
}
