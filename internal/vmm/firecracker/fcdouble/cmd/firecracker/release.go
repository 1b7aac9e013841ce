package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Set by the linker; see fcdouble.Build.
var (
	buildVersion = "1.17.0"
	buildGuest   = "suite"
	buildControl = "1024"
	buildData    = "1025"
)

// release is what the emulated version of Firecracker can do.
type release struct {
	version string // "1.13.1"
	minor   int
	format  string // of state files, "8.0.0"
}

// formats are the versions of state files, by minor version from 1.10 on.
var formats = []string{"4.0.0", "5.0.0", "6.0.0", "8.0.0", "8.0.0", "9.0.0", "10.0.0", "12.0.0"}

func parseRelease(version string) (release, error) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) == 3 && parts[0] == "1" {
		minor, err := strconv.Atoi(parts[1])
		if err == nil && minor >= 10 && minor-10 < len(formats) {
			r := release{version: version, minor: minor, format: formats[minor-10]}
			if version == "1.17.0-dev" {
				r.format = "11.0.0"
			}
			return r, nil
		}
	}
	return release{}, fmt.Errorf("this stand-in does not know Firecracker %q", version)
}

// since says whether the emulated version is 1.minor or later.
func (r release) since(minor int) bool { return r.minor >= minor }

// bitcode says that state files are in the newer of two encodings.
func (r release) bitcode() bool { return r.since(15) }

// headerFirst says that the version in a state file is looked at before the rest is decoded. Otherwise a file of another version
// is not told from a damaged one.
func (r release) headerFirst() bool { return r.minor == 14 }

// foreign says whether a state file of a format is in the encoding that this version does not read at all.
func (r release) foreign(format string) bool {
	i := slices.Index(formats, format)
	return (i+10 >= 15 || i < 0) != r.bitcode()
}

// deviceMissing is the word for a device that is not there.
func (r release) deviceMissing() string {
	if r.since(13) {
		return "Failed perform action on device: Device not found"
	}
	return "Device manager error: Failed to find the device on the bus."
}

// blockError begins what a drive reports.
func (r release) blockError() string {
	switch {
	case r.since(14):
		return "Block: "
	case r.since(13):
		return "Failed perform action on device: Internal Device error: "
	}
	return "Device manager error: "
}
