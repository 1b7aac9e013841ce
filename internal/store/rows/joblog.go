package rows

import (
	"errors"

	"github.com/sporevm/spore"
)

const maxLogLines = 1000

func logLineFields(l *spore.LogLine) []any {
	return []any{&l.Seq, asTime(&l.Time), &l.Level, asText(&l.Message)}
}

func (tx *Tx) AppendJobLog(jobID string, line spore.LogLine) error {
	_, err := tx.exec(`INSERT INTO job_log (job_id, seq, time, level, message)
		SELECT CAST(? AS TEXT), COALESCE(MAX(seq), 0) + 1, CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT) FROM job_log WHERE job_id = ?`,
		jobID, asTime(&line.Time), line.Level, asText(&line.Message), jobID)
	if errors.Is(err, ErrReference) {
		return unknown("job", jobID)
	}
	return err
}

func (tx *Tx) JobLog(jobID string, after int64, limit int) ([]spore.LogLine, error) {
	if limit <= 0 || limit > maxLogLines {
		limit = maxLogLines
	}
	lines, err := values(selectRows(tx, logLineFields,
		"SELECT seq, time, level, message FROM job_log WHERE job_id = ? AND seq > ? ORDER BY seq LIMIT ?", jobID, after, limit))
	if err != nil {
		return nil, err
	}
	if len(lines) == 0 { // an empty log, or no such job?
		if _, err := tx.QueuePlace(jobID); err != nil {
			return nil, err
		}
		return []spore.LogLine{}, nil
	}
	return lines, nil
}
