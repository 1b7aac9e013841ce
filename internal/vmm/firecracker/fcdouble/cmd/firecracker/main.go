// Command firecracker is a stand-in for Firecracker for tests: it speaks its API by its rules, keeps real memory files, drives
// and sockets, and runs a program of ours in place of a guest. Package fcdouble builds it.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/flags"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// The codes that the process ends with.
const (
	exitError  = 1
	exitPanic  = 134
	exitConfig = 152
	exitArgs   = 153
	exitHangup = 156
)

func knownFlags(rel release) []flags.Flag {
	known := []flags.Flag{
		{Name: "api-sock", Value: true, Default: "/run/firecracker.socket"}, {Name: "id", Value: true, Default: "anonymous-instance"},
		{Name: "seccomp-filter", Value: true, Forbids: []string{"no-seccomp"}}, {Name: "no-seccomp", Forbids: []string{"seccomp-filter"}},
		{Name: "start-time-us", Value: true}, {Name: "start-time-cpu-us", Value: true}, {Name: "parent-cpu-time-us", Value: true},
		{Name: "config-file", Value: true}, {Name: "metadata", Value: true}, {Name: "no-api", Requires: "config-file"},
		{Name: "log-path", Value: true}, {Name: "level", Value: true}, {Name: "module", Value: true}, {Name: "show-level"},
		{Name: "show-log-origin"}, {Name: "metrics-path", Value: true}, {Name: "boot-timer"}, {Name: "version"},
		{Name: "snapshot-version"}, {Name: "describe-snapshot", Value: true},
		{Name: "http-api-max-payload-size", Value: true, Default: "51200"}, {Name: "mmds-size-limit", Value: true},
	}
	if rel.since(13) {
		known = append(known, flags.Flag{Name: "enable-pci"})
	}
	return known
}

// failure ends the process: text goes to the log, debug to standard error.
type failure struct {
	text, debug string
	code        int
}

func (f *failure) Error() string { return f.text }

func main() {
	rel, err := parseRelease(buildVersion)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitError)
	}
	log := &logger{rel: rel, id: "anonymous-instance", out: os.Stdout}
	err = run(rel, log)
	var f *failure
	if !errors.As(err, &f) {
		log.print("Firecracker exiting successfully. exit_code=0")
		return
	}
	if f.code == exitPanic {
		log.print("Firecracker panicked at src/main.rs:1:1:\n%s", f.text)
		rust.Abort()
	}
	log.print("%s", f.text)
	fmt.Fprintf(os.Stderr, "Error: %s\n", f.debug)
	log.print("Firecracker exiting with error. exit_code=%d", f.code)
	os.Exit(f.code)
}

func run(rel release, log *logger) error {
	set, refused := flags.Parse(knownFlags(rel), os.Args[1:])
	if refused != nil {
		return &failure{fmt.Sprintf(`Arguments parsing error: %s \n\nFor more information try --help.`, refused),
			"ParseArguments(" + refused.Debug() + ")", exitArgs}
	}
	switch {
	case set.Has("help"):
		fmt.Printf("Firecracker v%s\n\noptional arguments:\n", rel.version)
		for _, f := range knownFlags(rel) {
			fmt.Printf("  --%s\n", f.Name)
		}
		return nil
	case set.Has("version"):
		fmt.Printf("Firecracker v%s\n\n", rel.version)
		return nil
	case set.Has("snapshot-version"):
		fmt.Printf("v%s\n", rel.format)
		return nil
	case set.Has("describe-snapshot"):
		text, err := describeSnapshot(rel, set.Value("describe-snapshot"))
		if err != nil {
			debug := "SnapshotVersion(" + rust.Debug(err) + ")"
			if _, ok := errno(err); ok {
				debug = "OpenSnapshot(" + rust.Debug(err) + ")"
			}
			return &failure{"When printing Snapshot Data format: " + worded("", err).Error()[2:], "PrintSnapshotDataFormat(" + debug + ")", exitError}
		}
		fmt.Println(text)
		return nil
	case set.Has("config-file"), set.Has("metadata"):
		return &failure{"the stand-in is configured by its API only", "Unsupported", exitConfig}
	}
	id := set.Value("id")
	if why := flags.InvalidID(id); why != "" {
		return &failure{"Invalid instance ID: " + why, "", exitPanic}
	}
	log.id = id
	if level := set.Value("level"); level != "" && !validLevel(level) {
		return &failure{fmt.Sprintf("Invalid value for logger level: Failed to parse string to level filter: %s.Possible values: [Error, Warning, Info, Debug]", level),
			fmt.Sprintf("InvalidLogLevel(LevelFilterFromStrError(%q))", level), exitConfig}
	}
	if path := set.Value("log-path"); path != "" {
		if err := log.open(path); err != nil {
			return &failure{"Could not initialize logger: Failed to open target file: " + rust.Message(err),
				"LoggerInitialization(LoggerUpdateError(" + rust.Debug(err) + "))", exitError}
		}
	}
	for _, name := range []string{"start-time-us", "start-time-cpu-us", "parent-cpu-time-us", "http-api-max-payload-size", "mmds-size-limit"} {
		if v := set.Value(name); v != "" {
			if _, err := strconv.ParseUint(v, 10, 64); err != nil {
				return &failure{fmt.Sprintf("'%s' parameter expected to be a number", name), "", exitPanic}
			}
		}
	}
	log.print("Running Firecracker v%s", rel.version)
	return serve(rel, log, set)
}

func serve(rel release, log *logger, set *flags.Set) error {
	path := set.Value("api-sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return &failure{fmt.Sprintf("RunWithApiError error: Failed to open the API socket at: %s. Check that it is not already used.", path),
			fmt.Sprintf("RunWithApi(FailedToBindSocket(%q))", path), exitError}
	}
	if err != nil {
		return &failure{"RunWithApiError error: Failed to bind and run the HTTP server: IO error: " + rust.Message(err),
			"RunWithApi(FailedToBindAndRunHttpServer(IOError(" + rust.Debug(err) + ")))", exitError}
	}
	listener.SetUnlinkOnClose(false)
	log.print("Listening on API socket (%q).", path)

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	limit, _ := strconv.ParseInt(set.Value("http-api-max-payload-size"), 10, 64) // was looked at by run
	vm := newMachine(rel, set.Value("id"), set.Has("enable-pci"), log)
	api := newServer(rel, log, limit, vm)
	go api.serve(listener)
	log.print("API server started.")
	select {
	case <-api.fatal:
		return &failure{"RunWithApiError error: Failed to build MicroVM: Loading snapshot failed.", "RunWithApi(BuildMicroVmError(Restore))", exitError}
	case <-hangup:
		return &failure{"Shutting down VM after intercepting signal 1", "Signal", exitHangup}
	case code := <-vm.end:
		log.print("Vmm is stopping.")
		if code != 0 {
			return &failure{"MicroVMStopped with an error", "RunWithApi(MicroVMStoppedWithError(GenericError))", code}
		}
		return nil
	}
}
