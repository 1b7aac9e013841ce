package client_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/gateway/gatewaytest"
)

// exampleServer stands in for a server that runs somewhere else.
func exampleServer() (url string, done func()) {
	var t exampleTB
	svc := gatewaytest.New()
	svc.AutoFinish = true
	svc.AgentTransport = gatewaytest.Agent(&t)
	svc.AddTemplate("debian")
	server := httptest.NewServer(gateway.New(svc, gateway.Options{LoopbackOnly: true, Logger: slog.New(slog.DiscardHandler)}))
	return server.URL, func() {
		server.CloseClientConnections()
		server.Close()
		for _, f := range t.cleanups {
			f()
		}
	}
}

type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (t *exampleTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

func Example() {
	url, done := exampleServer()
	defer done()
	ctx := context.Background()

	c, err := client.New(url)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	made, err := c.BuildTemplate(ctx, api.BuildRequest{Name: "python", Image: "docker.io/library/python:3.12-slim"})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.WaitJob(ctx, made.Job.ID, nil); err != nil {
		log.Fatal(err)
	}
	box, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "python", TTLSeconds: 600})
	if err != nil {
		log.Fatal(err)
	}
	defer c.DeleteSandbox(ctx, box.ID)

	out, err := c.Sandbox(box.ID).Command(ctx, "echo", "hello from a sandbox").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(out))
	// Output: hello from a sandbox
}

func ExampleCommand() {
	url, done := exampleServer()
	defer done()
	ctx := context.Background()
	c, err := client.New(url)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	box, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "debian"})
	if err != nil {
		log.Fatal(err)
	}

	cmd := c.Sandbox(box.ID).Command(ctx, "sh", "-c", `tr a-z A-Z; echo "for $WHO"`)
	cmd.Stdin = strings.NewReader("shouting\n")
	cmd.Env = map[string]string{"WHO": "everyone"}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		log.Fatal(err)
	}
	fmt.Print(out.String())
	// Output:
	// SHOUTING
	// for everyone
}

func ExampleClient_Fork() {
	url, done := exampleServer()
	defer done()
	ctx := context.Background()
	c, err := client.New(url)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	box, err := c.CreateSandbox(ctx, api.CreateRequest{Template: "debian"})
	if err != nil {
		log.Fatal(err)
	}

	forks, err := c.Fork(ctx, api.ForkRequest{Source: box.ID, Count: 4})
	if err != nil {
		log.Fatal(err)
	}
	running := 0
	for _, f := range forks {
		if err := client.ForkError(f); err != nil {
			log.Print(err) // one that fails does not stop the others
			continue
		}
		running++
	}
	fmt.Println(running)
	// Output: 4
}
