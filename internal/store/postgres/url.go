package postgres

import (
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sporevm/spore"
)

// schema holds all tables, Spore's and the queue's, so that the database may serve others too.
const schema = "spore"

const connectTimeout = 5 * time.Second

// parseURL reads a connection string. What is wrong with one is not repeated in the error: an error of the parser quotes
// what it could not read, and a password with a special character in it is just that.
func parseURL(text string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(text)
	if text == "" || err != nil || misread(config.ConnConfig) {
		return nil, spore.Invalidf("database", "the connection string cannot be read").
			WithHint("write postgres://USER:PASSWORD@HOST:PORT/NAME?sslmode=verify-full, with the special characters of the password percent-encoded")
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	params := config.ConnConfig.RuntimeParams
	params["search_path"] = schema
	if params["application_name"] == "" {
		params["application_name"] = "spore"
	}
	// A machine that is gone without a word holds its locks until this says so.
	params["tcp_keepalives_idle"] = "10"
	params["tcp_keepalives_interval"] = "5"
	params["tcp_keepalives_count"] = "3"
	return config, nil
}

var parameter = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// misread says whether the rest of a password was taken for something else, which errors would name.
func misread(config *pgx.ConnConfig) bool {
	for name := range config.RuntimeParams {
		if !parameter.MatchString(name) {
			return true
		}
	}
	return strings.Contains(config.Database, "@")
}
