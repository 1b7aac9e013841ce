package postgres_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/sporevm/spore/internal/store/pgtest"
)

// childEnv names the database that this test binary, started as a child, is to work on until it is killed.
const childEnv = "SPORE_TEST_DATABASE"

func TestMain(m *testing.M) {
	if url := os.Getenv(childEnv); url != "" {
		fmt.Println("error", child(url))
		os.Exit(1)
	}
	os.Exit(pgtest.Main(m))
}
