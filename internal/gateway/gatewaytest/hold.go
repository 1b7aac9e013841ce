package gatewaytest

import (
	"context"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// HoldSnapshot takes the snapshot at once, but says that it is still being made.
func (s *Service) HoldSnapshot(ctx context.Context, key center.Idempotency, id string, req center.SnapshotRequest, _ time.Duration) (*spore.Template, error) {
	t, err := s.CreateSnapshot(ctx, key, id, req)
	if err != nil {
		return nil, err
	}
	told := *t
	told.Status = spore.TemplateCreating
	s.held.Store(t.ID, true)
	return &told, nil
}

func (s *Service) ReleaseSnapshot(ctx context.Context, id string, keep bool) (*spore.Template, error) {
	if _, held := s.held.LoadAndDelete(id); !held {
		return nil, spore.Errorf(spore.CodeConflict, "no sandbox stands still for snapshot %s", id)
	}
	if !keep {
		_, err := s.DeleteTemplate(ctx, center.Idempotency{}, id, center.DeleteRequest{Force: true})
		if err != nil {
			return nil, err
		}
		return nil, spore.Errorf(spore.CodeCanceled, "what was to be done while the sandbox stood still was not done")
	}
	return s.Template(ctx, id)
}
