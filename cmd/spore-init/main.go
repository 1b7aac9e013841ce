// Command spore-init is the guest's PID 1: it brings the machine up from an initramfs, puts the image's file system
// together and switches to it, and then serves the host as the sandbox's agent for as long as the machine lives.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/sporevm/spore/internal/agent"
	"github.com/sporevm/spore/internal/guest/link"
)

func main() {
	if os.Getpid() != 1 && len(os.Args) == 2 && os.Args[1] == "--version" {
		// This is the one program that every sandbox has: running it warms up the way to running any.
		fmt.Println(agent.Version)
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "spore-init: only of use as PID 1 of a sandbox")
		os.Exit(2)
	}
	defer func() {
		if r := recover(); r != nil {
			fail(fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
		}
	}()
	if err := run(); err != nil {
		fail(err)
	}
}

// fail says why the machine cannot go on, and powers it off: a sandbox that hangs tells nobody anything.
func fail(err error) {
	logf("cannot go on: %v", err)
	halt(haltMode)
}

// logf writes to the console. Nothing reads it but people, so a failure to write has nobody to go to.
func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "spore-init: "+format+"\n", args...)
}

func run() error {
	// One thread of Go may sit in a system call while another serves the host, also on a single vCPU.
	runtime.GOMAXPROCS(max(2, runtime.NumCPU()))

	if err := mountEarly(); err != nil {
		return err
	}
	raw, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	opts, err := parseCmdline(string(raw))
	if err != nil {
		return err
	}
	haltMode = opts.halt
	dieLoudly()
	if err := loadModules(modulesDir); err != nil {
		return err
	}
	if err := mountRoot(opts.drives); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	raiseLimits()
	return serve()
}

// serve answers the host until power-off.
func serve() error {
	control, data, err := openPorts()
	if err != nil {
		return err
	}
	system, err := agent.NewGuest()
	if err != nil {
		return err
	}
	off := make(chan agent.PoweroffRequest, 1)
	a := agent.New(agent.Options{
		Reaper:  agent.NewReaper(true),
		System:  system,
		LogFile: stateDir + "/entrypoint.log",
		Poweroff: func(r agent.PoweroffRequest) {
			select {
			case off <- r:
			default: // is under way
			}
		},
	})
	streams := newStreams()
	srv := &http.Server{Handler: a.Handler(), ReadHeaderTimeout: time.Minute, ErrorLog: quiet()}
	failed := make(chan error, 2)
	go func() { failed <- fmt.Errorf("agent server: %w", srv.Serve(streams)) }()

	l := link.NewServer(data, func(s net.Conn) { link.Dispatch(s, streams.give) })
	data.onAbsence(l.Absent)
	go func() { failed <- fmt.Errorf("control port: %w", l.Run(control)) }()
	logf("agent %s serves", agent.Version)

	select {
	case err := <-failed:
		return err
	case r := <-off:
		powerOff(a, time.Duration(r.GraceMS)*time.Millisecond)
	case sig := <-powerSignals():
		logf("%v: powering off", sig)
		powerOff(a, defaultGrace)
	}
	return nil
}
