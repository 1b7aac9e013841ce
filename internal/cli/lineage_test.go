package cli_test

import (
	"slices"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/cli"
)

func TestLogShowsWhatLives(t *testing.T) {
	entries := []api.LineageEntry{ // newest first
		{ID: "snap-child", ParentID: "tpl-deleted", Status: spore.TemplateReady},
		{ID: "tpl-deleted", Status: spore.TemplateDeleted},
		{ID: "tpl-failed", Status: spore.TemplateFailed},
		{ID: "tpl-held", Status: spore.TemplateDeleting},
		{ID: "tpl-gone", Status: spore.TemplateDeleted},
		{ID: "tpl-ready", Status: spore.TemplateReady},
	}
	got := cli.Lineage(entries, []api.Sandbox{{ID: "s1", TemplateID: "tpl-held"}})
	if want := []string{"snap-child", "tpl-deleted", "tpl-held", "tpl-ready"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
