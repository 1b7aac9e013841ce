package gatewaytest

import (
	"cmp"
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

func (s *Service) alias(name, tag string) *spore.Alias {
	for _, a := range s.aliases {
		if a.Name == name && a.Tag == tag {
			return a
		}
	}
	return nil
}

func noAlias(name, tag string) error {
	return spore.Errorf(spore.CodeNotFound, "there is no alias %s", spore.Alias{Name: name, Tag: tag}.Label()).WithHint("spore alias ls")
}

func (s *Service) noteChange(a spore.Alias) {
	s.changes = append(s.changes, spore.AliasChange{Seq: int64(len(s.changes) + 1), Alias: a})
}

func (s *Service) PutAlias(_ context.Context, name, tag string, req center.AliasRequest) (*spore.Alias, error) {
	if err := s.enter("PutAlias"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, t := range s.templates {
		if t.Name == name && t.Status != spore.TemplateDeleted {
			return nil, spore.Errorf(spore.CodeConflict, "%s is the name of %s", name, t.ID).Because(spore.ReasonDuplicate)
		}
	}
	t, err := s.template(req.Template)
	if err != nil {
		return nil, err
	}
	a := s.alias(name, tag)
	if a == nil {
		a = &spore.Alias{Name: name, Tag: tag}
		s.aliases = append(s.aliases, a)
	}
	a.TemplateID, a.Author, a.Reason, a.UpdatedAt = t.ID, req.Author, req.Reason, Start
	s.noteChange(*a)
	return clone(a), nil
}

func (s *Service) Alias(_ context.Context, name, tag string) (*spore.Alias, error) {
	if err := s.enter("Alias"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if a := s.alias(name, tag); a != nil {
		return clone(a), nil
	}
	return nil, noAlias(name, tag)
}

func (s *Service) DeleteAlias(_ context.Context, name, tag, author, reason string) error {
	if err := s.enter("DeleteAlias"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	a := s.alias(name, tag)
	if a == nil {
		return noAlias(name, tag)
	}
	s.aliases = slices.DeleteFunc(s.aliases, func(b *spore.Alias) bool { return a == b })
	s.noteChange(spore.Alias{Name: name, Tag: tag, Author: author, Reason: reason, UpdatedAt: Start})
	return nil
}

func (s *Service) Aliases(_ context.Context, q center.AliasQuery) ([]*spore.Alias, string, error) {
	if err := s.enter("Aliases"); err != nil {
		return nil, "", err
	}
	defer s.mu.Unlock()
	var found []*spore.Alias
	for _, a := range s.aliases {
		if q.Template != "" {
			if t, err := s.template(q.Template); err != nil || t.ID != a.TemplateID {
				continue
			}
		}
		if q.Name == "" || q.Name == a.Name {
			found = append(found, clone(a))
		}
	}
	slices.SortFunc(found, func(a, b *spore.Alias) int { return cmp.Or(cmp.Compare(b.Name, a.Name), cmp.Compare(b.Tag, a.Tag)) })
	return page(found, q.Limit, q.PageToken)
}

func (s *Service) AliasHistory(_ context.Context, name, tag string, limit int) ([]spore.AliasChange, error) {
	if err := s.enter("AliasHistory"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var found []spore.AliasChange
	for _, c := range slices.Backward(s.changes) {
		if c.Name == name && (tag == "" || c.Tag == tag) {
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		return nil, noAlias(name, cmp.Or(tag, spore.DefaultTag))
	}
	return found[:min(limit, len(found))], nil
}

func entry(t *spore.Template) spore.LineageEntry {
	return spore.LineageEntry{
		ID: t.ID, Name: t.Name, Kind: t.Kind, Status: t.Status, ParentID: t.ParentID, OriginSandbox: t.OriginSandbox, Author: t.Author, Reason: t.Reason,
		Labels: t.Labels, CreatedAt: t.CreatedAt,
	}
}

func (s *Service) Lineage(_ context.Context, ref string, q center.LineageQuery) (*center.Lineage, error) {
	if err := s.enter("Lineage"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	t, err := s.template(ref)
	if err != nil {
		return nil, err
	}
	out := &center.Lineage{Self: entry(t)}
	for _, a := range s.aliases {
		if a.TemplateID == t.ID {
			out.Self.Aliases = append(out.Self.Aliases, a.Label())
		}
	}
	if q.Ancestors {
		for up := t.ParentID; up != ""; {
			at := slices.IndexFunc(s.templates, func(t *spore.Template) bool { return t.ID == up })
			if at < 0 {
				break
			}
			out.Ancestors = append(out.Ancestors, entry(s.templates[at]))
			up = s.templates[at].ParentID
		}
	}
	if q.Descendants {
		below := map[string]bool{t.ID: true}
		for _, d := range s.templates { // parents come first
			if below[d.ParentID] {
				below[d.ID] = true
				out.Descendants = append(out.Descendants, entry(d))
			}
		}
	}
	if room := max(q.Limit-len(out.Ancestors), 0); len(out.Descendants) > room {
		out.Descendants, out.Omitted = out.Descendants[:room], true
	}
	return out, nil
}

func (s *Service) Diff(_ context.Context, from, to string, limit int) (*spore.Diff, error) {
	if err := s.enter("Diff"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	a, err := s.template(from)
	if err != nil {
		return nil, err
	}
	b, err := s.template(to)
	if err != nil {
		return nil, err
	}
	files := []spore.FileChange{
		{Path: "/etc/hostname", Kind: spore.ChangeModified, SizeFrom: 12, SizeTo: 14},
		{Path: "/srv/data", Kind: spore.ChangeAdded, Directory: true},
		{Path: "/tmp/old", Kind: spore.ChangeRemoved, SizeFrom: 3},
	}
	shown := min(limit, len(files))
	return &spore.Diff{From: a.ID, To: b.ID, Files: files[:shown], FilesOmitted: len(files) - shown, MemoryChanged: 1 << 20, MemoryTotal: 512 << 20, DiskChanged: 64 << 10}, nil
}
