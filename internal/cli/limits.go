package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
)

// limitFlags say how much a server takes in and how long it keeps it.
type limitFlags struct {
	storage             storageFlag
	keepLast            int
	maxAge              ageFlag
	snapshotsPerSandbox int
	templates           int
	bytes               quotaFlag
}

func (f *limitFlags) add(cmd *cobra.Command) {
	f.storage.limits = spore.DefaultStorageLimits
	flags := cmd.Flags()
	flags.Var(&f.storage, "storage-limits", "percentages of the disk from which on to warn, to refuse new snapshots and templates, and to refuse all but deletes")
	flags.IntVar(&f.keepLast, "snapshot-keep-last", 0, "keep only so many snapshots of each sandbox, the newest; 0 is all")
	flags.Var(&f.maxAge, "snapshot-max-age", "remove snapshots that are older, such as 36h or 30d")
	flags.IntVar(&f.snapshotsPerSandbox, "quota-snapshots-per-sandbox", 0, "at most so many snapshots of each sandbox; 0 is no limit")
	flags.IntVar(&f.templates, "quota-templates", 0, "at most so many templates; 0 is no limit")
	flags.Var(&f.bytes, "quota-bytes", "at most so many bytes kept for templates and snapshots, such as 500GiB")
}

// into takes the limits over into what the server is told.
func (f *limitFlags) into(cfg *ServeConfig, cmd *cobra.Command) error {
	for name, n := range map[string]int{"snapshot-keep-last": f.keepLast, "quota-snapshots-per-sandbox": f.snapshotsPerSandbox, "quota-templates": f.templates} {
		if n < 0 {
			return usage(cmd, fmt.Errorf("--%s cannot be negative", name))
		}
	}
	if cfg.OperationTimeout <= 0 {
		return usage(cmd, errors.New("--operation-timeout must be more than nothing"))
	}
	cfg.StorageLimits, cfg.KeepLast, cfg.MaxAge = f.storage.limits, f.keepLast, time.Duration(f.maxAge)
	cfg.SnapshotsPerSandbox, cfg.Templates, cfg.QuotaBytes = f.snapshotsPerSandbox, f.templates, int64(f.bytes)
	return nil
}

// storageFlag is three rising percentages.
type storageFlag struct{ limits spore.StorageLimits }

func (f *storageFlag) String() string {
	return fmt.Sprintf("%d,%d,%d", f.limits.Warn, f.limits.Reject, f.limits.DeleteOnly)
}

func (f *storageFlag) Type() string { return "percentages" }

func (f *storageFlag) Set(s string) error {
	l, err := parseStorageLimits(s)
	if err != nil {
		return err
	}
	f.limits = l
	return nil
}

// parseStorageLimits reads 70,85,95.
func parseStorageLimits(s string) (spore.StorageLimits, error) {
	words := strings.Split(s, ",")
	wrong := errors.New("not three rising percentages; write 70,85,95")
	if len(words) != 3 {
		return spore.StorageLimits{}, wrong
	}
	var n [3]int
	for i, w := range words {
		pct, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(w), "%"), 10, 7)
		if err != nil {
			return spore.StorageLimits{}, wrong
		}
		n[i] = int(pct)
	}
	l := spore.StorageLimits{Warn: n[0], Reject: n[1], DeleteOnly: n[2]}
	if l.Validate() != nil {
		return spore.StorageLimits{}, wrong
	}
	return l, nil
}

// ageFlag is a length of time that may be given in days.
type ageFlag time.Duration

func (f *ageFlag) String() string {
	if *f == 0 {
		return ""
	}
	return time.Duration(*f).String()
}

func (f *ageFlag) Type() string { return "duration" }

func (f *ageFlag) Set(s string) error {
	d, err := parseAge(s)
	*f = ageFlag(d)
	return err
}

// parseAge reads 90s, 36h or 30d; 0 is none.
func parseAge(s string) (time.Duration, error) {
	const day = 24 * time.Hour
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 31)
		if err != nil || n > uint64(math.MaxInt64/day) {
			return 0, errors.New("not a number of days; write 30d")
		}
		return time.Duration(n) * day, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, errors.New("not a length of time; write 36h or 30d")
	}
	return d, nil
}

// quotaFlag is a number of bytes; 0 is no limit.
type quotaFlag int64

func (f *quotaFlag) String() string {
	if *f == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*f))
}

func (f *quotaFlag) Type() string { return "bytes" }

func (f *quotaFlag) Set(s string) error {
	n, err := parseQuota(s)
	*f = quotaFlag(n)
	return err
}

// parseQuota reads 500GiB.
func parseQuota(s string) (int64, error) {
	// The parser goes by way of a float, which has no room for more digits than that.
	n, err := humanize.ParseBytes(s)
	if err != nil || strings.HasPrefix(s, "-") || n > 1<<60 {
		return 0, errors.New("not a number of bytes; write 500GiB")
	}
	return int64(n), nil
}
