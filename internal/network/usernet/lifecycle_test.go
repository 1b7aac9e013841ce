package usernet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	spore "github.com/sporevm/spore"
)

func alive(pid int) bool { _, err := startTime(pid); return err == nil }

func pidOf(t testing.TB, dir string) int {
	t.Helper()
	r, err := readRecord(dir)
	must(t, err)
	return r.PID
}

func begin(t testing.TB, spec Spec) (*Link, string) {
	t.Helper()
	dir := t.TempDir()
	spec.ID = "s1"
	l, err := Start(dir, spec, Options{})
	must(t, err)
	t.Cleanup(func() { cleaned(t, dir) })
	return l, dir
}

func TestEndsWithVM(t *testing.T) {
	l, dir := begin(t, Spec{})
	pid := pidOf(t, dir)
	_, err := Start(dir, Spec{ID: "s1"}, Options{})
	wantCode(t, "a second one in the same directory", err, spore.CodeConflict)
	noTime, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, "Watch of one that lives", l.Watch(noTime), spore.CodeCanceled)
	watched := make(chan error, 1)
	go func() { watched <- l.Watch(t.Context()) }()
	g := newGuest(t, l.Socket())
	eventually(t, "it is connected", func() bool { s, err := l.Stats(t.Context()); must(t, err); return s.Connected })
	if conn, err := net.Dial("unix", l.Socket()); err == nil {
		t.Error("a second VM can connect")
		conn.Close()
	}
	must(t, g.conn.Close())
	wantCode(t, "Watch", <-watched, spore.CodeNotFound)
	if alive(pid) {
		t.Error("it was said to have ended and lives")
	}
	wantCode(t, "Watch again", l.Watch(t.Context()), spore.CodeNotFound)
	wantCode(t, "Ready", l.Ready(t.Context()), spore.CodeNotFound)
	wantCode(t, "Update", l.Update(t.Context(), spore.Egress{}, Rates{}), spore.CodeNotFound)
	_, err = Open(dir)
	wantCode(t, "Open", err, spore.CodeNotFound)
	// Its place is as good as new.
	l, err = Start(dir, Spec{ID: "s1"}, Options{})
	must(t, err)
	must(t, l.Ready(t.Context()))
}

func TestEndsOfItself(t *testing.T) {
	l, dir := begin(t, Spec{})
	must(t, l.Ready(t.Context()))
	pid := pidOf(t, dir)
	_, err := l.ask(t.Context(), request{End: true})
	must(t, err)
	eventually(t, "it ends", func() bool { return !alive(pid) })
}

func TestNobodyConnects(t *testing.T) {
	old := connectFor
	connectFor = 50 * time.Millisecond
	defer func() { connectFor = old }()
	e, err := newEngine(Spec{ID: "s1"}, quiet())
	must(t, err)
	dir := t.TempDir()
	listener := func(name string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, name)})
		must(t, err)
		return l
	}
	s := &sidecar{engine: e, log: quiet()}
	must(t, s.run(func(ctx context.Context) (cable, error) { return s.accept(ctx, listener("f")) }, listener("c")))
}

func TestNoVMSpeaks(t *testing.T) {
	l, dir := begin(t, Spec{})
	pid := pidOf(t, dir)
	conn, err := net.Dial("unix", l.Socket())
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
	must(t, err)
	eventually(t, "it ends", func() bool { return !alive(pid) })
	if err := l.Ready(t.Context()); spore.CodeOf(err) != spore.CodeNotFound || !strings.Contains(err.Error(), "no VM") {
		t.Errorf("%v", err)
	}
}

// orphan has a server start a sidecar in dir, kills the server, and takes the sidecar over.
func orphan(t *testing.T, dir string, how ...string) *Link {
	t.Helper()
	t.Cleanup(func() { cleaned(t, dir) })
	server := exec.Command(os.Args[0], append([]string{"start-and-wait", dir}, how...)...)
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	must(t, err)
	must(t, server.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	must(t, syscall.Kill(server.Process.Pid, syscall.SIGKILL))
	server.Wait() // says that it was killed
	l, err := Open(dir)
	must(t, err)
	must(t, l.Ready(t.Context()))
	return l
}

// TestSurvivesItsServer kills the process that started a sidecar, and takes the sidecar over.
func TestSurvivesItsServer(t *testing.T) {
	dir := t.TempDir()
	l := orphan(t, dir)
	g := newGuest(t, l.Socket())
	must(t, l.Update(t.Context(), spore.Egress{Internet: internetOff}, Rates{In: 1_000_000}))
	if g.reaches(serverIP + ":80") {
		t.Error("the policy was not changed")
	}
	pid := pidOf(t, dir)
	must(t, l.Stop(t.Context()))
	eventually(t, "it ends", func() bool { return !alive(pid) })
	<-g.done
}

func TestStartRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		spec Spec
		opts Options
		dir  string
		code spore.Code
	}{
		"a policy that cannot be": {spec: Spec{Egress: spore.Egress{AllowCIDRs: []string{"1.2.3.4"}, DenyCIDRs: []string{"1.2.3.4"}}}, code: spore.CodeInvalid},
		"a rate that cannot be":   {spec: Spec{Rates: Rates{Out: -1}}, code: spore.CodeInvalid},
		"no directory":            {dir: "missing", code: spore.CodeInvalid},
		"no such VM":              {spec: Spec{Tap: true}, opts: Options{VM: os.Getpid()}, code: spore.CodeInternal},
		"no program":              {opts: Options{Program: "/no/such/program"}, code: spore.CodeInternal},
	} {
		dir := t.TempDir()
		_, err := Start(filepath.Join(dir, tc.dir), tc.spec, tc.opts)
		wantCode(t, name, err, tc.code)
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: files were left: %v, %v", name, entries, err)
		}
	}
	dir := t.TempDir()
	_, err := Open(dir)
	wantCode(t, "Open where nothing was started", err, spore.CodeNotFound)
	must(t, Clean(t.Context(), dir))

	script := filepath.Join(dir, "sidecar")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho the dog ate it >&2\nexit 3\n"), 0o700))
	dir = t.TempDir()
	l, err := Start(dir, Spec{}, Options{Program: script, Args: []string{"sidecar"}})
	must(t, err)
	t.Cleanup(func() { cleaned(t, dir) })
	eventually(t, "it is known to have ended", func() bool {
		err := l.Ready(t.Context())
		return spore.CodeOf(err) == spore.CodeNotFound && strings.Contains(err.Error(), "the dog ate it")
	})
}

// A record may outlive its process, and the pid then belong to someone else.
func TestCleanSparesStrangers(t *testing.T) {
	for _, text := range []string{fmt.Sprintf(`{"pid":%d,"start":1,"bootId":"x"}`, os.Getpid()), "{"} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, nameRecord), []byte(text), 0o600))
		must(t, Clean(t.Context(), dir)) // ends this test if it is wrong
		if _, err := os.Stat(filepath.Join(dir, nameRecord)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the record was left: %v", err)
		}
	}
}

func TestConfined(t *testing.T) {
	const uid = 64000123
	_, dir := begin(t, Spec{UID: uid})
	l := &Link{dir: dir}
	must(t, l.Ready(t.Context()))
	pid := pidOf(t, dir)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	if os.Geteuid() == 0 {
		for _, want := range []string{"Uid:\t64000123\t64000123\t64000123\t64000123", "Gid:\t64000123\t64000123\t64000123\t64000123", "Groups:\t \n", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || strings.Count(string(command), "\x00") != 3 || strings.Contains(string(command), "egress") {
		t.Errorf("%q, %v", command, err)
	}
	for _, name := range []string{nameFrames, nameControl, nameRecord, nameLog} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}

// A server that asks and does not listen keeps nobody else from being answered.
func TestControlIsPatient(t *testing.T) {
	l, dir := begin(t, Spec{})
	must(t, l.Ready(t.Context()))
	for _, junk := range []string{"", "junk\n", `{"unknown":1}`, strings.Repeat(" ", 1000)} {
		conn, err := dial(dir, nameControl)
		must(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte(junk))
		must(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, l.Ready(ctx))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, "an asker who has no time", l.Ready(ended), spore.CodeCanceled)
}
