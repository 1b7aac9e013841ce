package guest

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/process"
	"github.com/sporevm/spore/api/process/processconnect"
)

// selfCommand runs the agent's own executable, which every sandbox has, to no effect.
const selfCommand = "/proc/self/exe"

// Warm makes the agent do once what a thawed sandbox does first: take an identity, and run a command for a client of
// either codec. A state that is frozen afterwards has all the code and tables for it in memory, and its thaws answer
// sooner. It changes nothing that a program in the sandbox can see, but for fresh entropy and the right time.
func (a *Agent) Warm(ctx context.Context) error {
	if _, err := a.Greet(ctx, Identity{}); err != nil {
		return err
	}
	if _, err := a.Run(ctx, Command{Path: selfCommand, Args: []string{"--version"}, User: "0", Dir: "/"}); err != nil {
		return err
	}
	client := processconnect.NewProcessClient(&http.Client{Transport: a.transport}, "http://agent", connect.WithProtoJSON())
	dir, stdin := "/", false
	req := connect.NewRequest(&process.StartRequest{Stdin: &stdin, Process: &process.ProcessConfig{
		Cmd: selfCommand, Args: []string{"--version"}, Cwd: &dir, Envs: map[string]string{"LANG": "C"},
	}})
	req.Header().Set("Authorization", basicUser("0"))
	stream, err := client.Start(ctx, req)
	if err != nil {
		return typed(err)
	}
	defer stream.Close()
	for stream.Receive() {
	}
	if err := stream.Err(); err != nil {
		return typed(err)
	}
	return nil
}
