package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// channel is what servers tell each other of their commits on.
const channel = "spore_changes"

// listener hears of the commits of other servers, on a connection of its own, and of the database's comings and goings.
type listener struct {
	config   *pgx.ConnConfig
	self     string // what this store's notices say, which it need not hear
	changes  *broadcast
	returned func() // called when the database answers again
	logger   *slog.Logger
	away     atomic.Bool // whether the database does not answer
	quit     context.CancelFunc
	ended    chan struct{}
}

const (
	// How long a silent connection is believed to be alive.
	silence = 15 * time.Second
	// How long to wait before another try to connect: at first, and at most.
	soonest, latest = 50 * time.Millisecond, 2 * time.Second
)

// listen connects, and goes on to do so whenever the connection is lost, until close.
func listen(ctx context.Context, config *pgx.ConnConfig, changes *broadcast, returned func(), logger *slog.Logger) (*listener, error) {
	l := &listener{config: config, self: rand.Text(), changes: changes, returned: returned, logger: logger, ended: make(chan struct{})}
	conn, err := l.connect(ctx)
	if err != nil {
		return nil, failure(ctx, err)
	}
	alive, quit := context.WithCancel(context.Background())
	l.quit = quit
	go l.work(alive, conn)
	return l, nil
}

// notice is the statement, part of a transaction, that tells other servers of its commit.
func (l *listener) notice() string { return fmt.Sprintf("NOTIFY %s, '%s'", channel, l.self) }

func (l *listener) close() {
	l.quit()
	<-l.ended
}

func (l *listener) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, l.config)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		hangUp(conn)
		return nil, err
	}
	return conn, nil
}

func hangUp(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing was under way on it
}

func (l *listener) work(ctx context.Context, conn *pgx.Conn) {
	defer close(l.ended)
	for {
		err := l.hear(ctx, conn)
		hangUp(conn)
		if ctx.Err() != nil {
			return
		}
		l.away.Store(true)
		l.logger.Warn("the database does not answer", "err", err)
		began := time.Now()
		for pause := soonest; ; pause = min(2*pause, latest) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			if conn, err = l.connect(ctx); err == nil {
				break
			}
		}
		l.away.Store(false)
		l.logger.Info("the database answers again", "after", time.Since(began).Round(time.Millisecond))
		l.changes.send() // what was missed meanwhile is not known
		l.returned()
	}
}

// hear passes notices on until the connection is lost.
func (l *listener) hear(ctx context.Context, conn *pgx.Conn) error {
	for {
		patience, cancel := context.WithTimeout(ctx, silence)
		notice, err := conn.WaitForNotification(patience)
		expired := patience.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			if notice.Payload != l.self {
				l.changes.send()
			}
		case expired && !conn.IsClosed():
			if err := ping(ctx, conn); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return conn.Ping(ctx)
}
