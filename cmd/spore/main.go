// Command spore is the server, its command line, and the tools around them.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/sporevm/spore/internal/cli"
	"github.com/sporevm/spore/internal/daemon"
)

// version is set by the linker for releases.
var version string

func main() {
	if len(os.Args) > 1 && os.Args[1] == "pager" { // the server's own child, not a command for people
		os.Exit(daemon.Pager(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == daemon.NetworkCommand { // of one sandbox
		os.Exit(daemon.NetworkStack(os.Args[2:]))
	}
	os.Exit(cli.Run(context.Background(), wire(cli.Options{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: buildVersion(),
	})))
}

// buildVersion is the release, or else the commit that this was built from.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "dev-" + s.Value[:12]
			}
		}
	}
	return "dev"
}
