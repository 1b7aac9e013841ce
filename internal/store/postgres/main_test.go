package postgres_test

import (
	"os"
	"testing"

	"github.com/sporevm/spore/internal/store/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
