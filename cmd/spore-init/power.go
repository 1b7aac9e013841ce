package main

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/agent"
)

// haltMode is how the machine ends; it is known as soon as the kernel command line has been read.
var haltMode = haltPoweroff

// defaultGrace is how long processes may take to end when nobody has said.
const defaultGrace = 5 * time.Second

// powerSignals are the signals that mean power-off to PID 1: those of power daemons, of ctrl-alt-del, and plain kill.
func powerSignals() <-chan os.Signal {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil { // ctrl-alt-del becomes SIGINT
		logf("ctrl-alt-del: %v", err)
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR)
	return c
}

// powerOff ends the machine in order: the image's command as it wants to be ended, then everybody else, then the disks.
func powerOff(a *agent.Agent, grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	a.StopEntrypoint(ctx)
	signalAll(syscall.SIGTERM)
	for ctx.Err() == nil && othersLive() {
		time.Sleep(5 * time.Millisecond)
	}
	signalAll(syscall.SIGKILL)
	for end := time.Now().Add(2 * time.Second); othersLive() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	unix.Sync()
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		logf("the root could not be made read-only: %v", err) // synced it is
	}
	halt(haltMode)
}

// signalAll signals every process but this one.
func signalAll(sig syscall.Signal) {
	if err := syscall.Kill(-1, sig); err != nil && err != syscall.ESRCH {
		logf("%v to all: %v", sig, err)
	}
}

// othersLive says whether any process of user space is left beside this one.
func othersLive() bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 2 {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err == nil && livesInUserSpace(string(stat)) {
			return true
		}
	}
	return false
}

// livesInUserSpace reads /proc/PID/stat: the name in parentheses, then the state and the parent. Threads of the kernel
// are children of process 2.
func livesInUserSpace(stat string) bool {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	return len(fields) >= 2 && fields[0] != "Z" && fields[0] != "X" && fields[1] != "2"
}

// halt ends the machine now.
func halt(mode string) {
	unix.Sync()
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if mode == haltReboot {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	if err := unix.Reboot(cmd); err != nil {
		logf("halt: %v", err)
	}
	os.Exit(1) // PID 1 ending makes the kernel panic, and that ends the machine too
}

// dieLoudly makes the kernel reset at once when it panics, as it does when this process dies: the hypervisor sees an
// end instead of a machine that stands still.
func dieLoudly() {
	if err := os.WriteFile("/proc/sys/kernel/panic", []byte("-1\n"), 0o644); err != nil {
		logf("panic setting: %v", err)
	}
}

// raiseLimits lets processes open as many files as containers can.
func raiseLimits() {
	limit := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		logf("open files: %v", err)
	}
}
