package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	yaml "github.com/oasdiff/yaml"

	"github.com/sporevm/spore/internal/vmm"
)

// description reads Firecracker's own description of its API, which is no part of this project.
func description(t *testing.T) *openapi3.T {
	t.Helper()
	path := os.Getenv("SPORE_FIRECRACKER_API")
	if path == "" {
		path = filepath.Join(repositoryRoot(t), "..", "shared", "reference", "firecracker.yaml")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("there is no description of Firecracker's API to check the client against (%v); SPORE_FIRECRACKER_API names one", err)
	}
	var doc openapi2.T
	_, err = yaml.Unmarshal(text, &doc, yaml.DecodeOpts{})
	must(t, err)
	api, err := openapi2conv.ToV3(&doc)
	must(t, err)
	return api
}

func repositoryRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("there is no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}

// everyRequest makes the client send each request it can send, with every field set.
func everyRequest(t *testing.T, c *client) {
	t.Helper()
	ctx := t.Context()
	limits := limiter(vmm.DriveLimits{BytesPerSecond: 5 << 20, OpsPerSecond: 50})
	for what, err := range map[string]error{
		"machine-config": c.putMachine(ctx, machineConfiguration{VCPUCount: 2, MemSizeMiB: 128, TrackDirtyPages: true, HugePages: pagesTransparent}),
		"boot-source":    c.putBootSource(ctx, bootSource{KernelImagePath: "k", InitrdPath: "i", BootArgs: "a"}),
		"drive": c.putDrive(ctx, drive{
			DriveID: "disk", PathOnHost: "d", IsReadOnly: true, CacheType: "Writeback", IOEngine: "Sync", RateLimiter: limits,
		}),
		"patch drive":   c.patchDrive(ctx, partialDrive{DriveID: "disk", RateLimiter: limiter(vmm.DriveLimits{})}),
		"network":       c.putNetwork(ctx, networkInterface{IfaceID: ifaceID, GuestMAC: "02:00:00:00:00:01", HostDevName: "tap0"}),
		"vsock":         c.putVsock(ctx, vsock{GuestCID: guestCID, UDSPath: nameVsock}),
		"entropy":       c.putEntropy(ctx),
		"start":         c.act(ctx, actionStart),
		"ctrl-alt-del":  c.act(ctx, actionCtrlAltDel),
		"pause":         c.setState(ctx, statePaused),
		"resume":        c.setState(ctx, stateResumed),
		"full snapshot": c.createSnapshot(ctx, snapshotCreateParams{SnapshotType: snapshotFull, SnapshotPath: "s", MemFilePath: "m"}),
		"diff snapshot": c.createSnapshot(ctx, snapshotCreateParams{SnapshotType: snapshotDiff, SnapshotPath: "s", MemFilePath: "m"}),
		"load a file": c.loadSnapshot(ctx, snapshotLoadParams{
			SnapshotPath: "s", MemBackend: memoryBackend{backendFile, "m"}, TrackDirtyPages: true, ResumeVM: true,
			NetworkOverrides: []networkOverride{{ifaceID, "tap1"}}, ClockRealtime: true, HugePages: pagesTransparent,
		}),
		"load by fault": c.loadSnapshot(ctx, snapshotLoadParams{SnapshotPath: "s", MemBackend: memoryBackend{backendUffd, "m"}, EnableDiffSnapshots: true}),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, get := range map[string]func() error{
		"instance": func() error { _, err := c.instance(ctx); return err },
	} {
		if err := get(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestContract checks every request against Firecracker's description of its API: the path and method are there, the body
// fits its schema, and it has no field that the schema does not know.
func TestContract(t *testing.T) {
	api := description(t)
	seen := 0
	c := serveClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen++
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = checkRequest(api, r.Method, r.URL.Path, body)
		}
		if err != nil {
			t.Errorf("%s %s %s: %v", r.Method, r.URL.Path, body, err)
		}
		if r.Method == http.MethodGet {
			io.WriteString(w, "{}")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	everyRequest(t, c)
	if seen < 16 {
		t.Errorf("%d requests were checked", seen)
	}
}

func serveClient(t *testing.T, h http.Handler) *client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c := newClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
	})
	t.Cleanup(c.close)
	return c
}

func checkRequest(api *openapi3.T, method, path string, body []byte) error {
	item, params := findPath(api, path)
	if item == nil {
		return fmt.Errorf("there is no such path")
	}
	op := item.GetOperation(method)
	if op == nil {
		return fmt.Errorf("there is no such method")
	}
	if op.RequestBody == nil || op.RequestBody.Value == nil {
		if len(body) > 0 {
			return fmt.Errorf("it takes no body")
		}
		return nil
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return err
	}
	media := op.RequestBody.Value.Content.Get("application/json")
	schema := media.Schema.Value
	if err := schema.VisitJSON(value); err != nil {
		return err
	}
	for name, want := range params {
		if got, ok := value.(map[string]any)[name]; ok && got != want {
			return fmt.Errorf("%s is %v in the body and %v in the path", name, got, want)
		}
	}
	return knownFields(schema, value, "")
}

// knownFields refuses fields that a schema does not name.
func knownFields(schema *openapi3.Schema, value any, at string) error {
	switch v := value.(type) {
	case map[string]any:
		for name, field := range v {
			ref := schema.Properties[name]
			if ref == nil {
				return fmt.Errorf("%s.%s is not known", at, name)
			}
			if err := knownFields(ref.Value, field, at+"."+name); err != nil {
				return err
			}
		}
	case []any:
		for _, element := range v {
			if err := knownFields(schema.Items.Value, element, at+"[]"); err != nil {
				return err
			}
		}
	}
	return nil
}

func findPath(api *openapi3.T, path string) (*openapi3.PathItem, map[string]string) {
	if item := api.Paths.Value(path); item != nil {
		return item, nil
	}
	for template, item := range api.Paths.Map() {
		want, got := strings.Split(template, "/"), strings.Split(path, "/")
		if len(want) != len(got) {
			continue
		}
		params, ok := map[string]string{}, true
		for i := range want {
			if strings.HasPrefix(want[i], "{") {
				params[strings.Trim(want[i], "{}")] = got[i]
			} else if want[i] != got[i] {
				ok = false
			}
		}
		if ok {
			return item, params
		}
	}
	return nil, nil
}

// The description must be able to refuse something, or it proves nothing.
func TestContractRefuses(t *testing.T) {
	api := description(t)
	for name, tc := range map[string][3]string{
		"path":   {"PUT", "/drive/x", `{}`},
		"method": {"DELETE", "/actions", `{}`},
		"field":  {"PUT", "/vsock", `{"guest_cid":3,"uds_path":"v","mode":1}`},
		"type":   {"PUT", "/vsock", `{"guest_cid":"3","uds_path":"v"}`},
		"enum":   {"PATCH", "/vm", `{"state":"Gone"}`},
		"nested": {"PUT", "/drives/a", `{"drive_id":"a","is_root_device":false,"rate_limiter":{"bandwidth":{"size":1}}}`},
		"id":     {"PUT", "/drives/a", `{"drive_id":"b","is_root_device":false}`},
	} {
		if err := checkRequest(api, tc[0], tc[1], []byte(tc[2])); err == nil {
			t.Errorf("%s: %v is let through", name, tc)
		}
	}
}

func TestClientErrors(t *testing.T) {
	answer := func(status int, body string) *client {
		return serveClient(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}))
	}
	for body, want := range map[string]string{
		`{"fault_message":"The kernel file cannot be opened"}`: "The kernel file cannot be opened",
		`{"fault_message":"a\nb\u0007"}`:                       "a b",
		"no JSON\x00":                                          "no JSON",
		"":                                                     "",
	} {
		err := answer(400, body).act(t.Context(), actionStart)
		refused, ok := err.(*APIError)
		if !ok || refused.Status != 400 || refused.Message != want || refused.Path != "/actions" {
			t.Errorf("%q: %#v", body, err)
		}
	}
	if _, err := answer(200, "{").instance(t.Context()); err == nil {
		t.Error("a torn answer is taken")
	}
	if _, err := answer(200, string(bytes.Repeat([]byte(" "), 2*maxAnswer))).instance(t.Context()); err == nil {
		t.Error("an answer without end is taken")
	}
}
