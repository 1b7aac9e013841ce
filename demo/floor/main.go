// Command floor measures what the bare hypervisor needs to thaw and to boot a template of a running server, for the demo's table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sporevm/spore/internal/bench"
)

func main() {
	server := flag.String("server", "", "URL of the server")
	data := flag.String("data", "", "its data directory")
	template := flag.String("template", "", "the template to measure")
	thaws := flag.Int("thaws", 5, "how many thaws")
	boots := flag.Int("boots", 2, "how many boots")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *server, *data, *template, *thaws, *boots); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

// run prints one line for each floor: its name and its median in whole milliseconds.
func run(ctx context.Context, server, data, template string, thaws, boots int) error {
	times, err := bench.MeasureFloor(ctx, server, data, template, thaws, boots)
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name   string
		series *bench.Series
	}{{"thaw", times.Thaw}, {"boot", times.Boot}} {
		if len(s.series.Failures) > 0 {
			return errors.New(s.name + ": " + s.series.Failures[0])
		}
		fmt.Printf("%s %.0f\n", s.name, s.series.P50)
	}
	return nil
}
