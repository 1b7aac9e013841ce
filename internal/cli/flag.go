package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/client"
)

// sizeFlag is a size in MiB: a bare number, or one with M, G or T.
type sizeFlag struct{ mib int }

func (f *sizeFlag) String() string {
	if f.mib == 0 {
		return ""
	}
	return strconv.Itoa(f.mib) + "M"
}

func (f *sizeFlag) Type() string { return "size" }

func (f *sizeFlag) Set(s string) error {
	n, err := parseMiB(s)
	f.mib = n
	return err
}

// parseMiB reads 512, 512M, 512MiB, 2G or 1T as a number of MiB.
func parseMiB(s string) (int, error) {
	digits := strings.TrimRight(s, "MmGgTtIiBb")
	unit := strings.ToLower(s[len(digits):])
	factor, known := map[string]int{"": 1, "m": 1, "mb": 1, "mib": 1, "g": 1 << 10, "gb": 1 << 10, "gib": 1 << 10, "t": 1 << 20, "tb": 1 << 20, "tib": 1 << 20}[unit]
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || !known || n == 0 || int(n) > math.MaxInt32/factor {
		return 0, errors.New("not a size; write 512M or 2G")
	}
	return int(n) * factor, nil
}

// mapFlag gathers KEY=VALUE. With fromEnv a bare KEY takes its value from the environment.
type mapFlag struct {
	values  map[string]string
	fromEnv func(string) string
}

func (f *mapFlag) String() string { return pairs(f.values) }
func (f *mapFlag) Type() string   { return "key=value" }

func (f *mapFlag) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok && f.fromEnv != nil && key != "" {
		if value = f.fromEnv(key); value == "" {
			return nil // not set here, and so not there
		}
	} else if !ok {
		return errors.New("write KEY=VALUE")
	}
	if key == "" {
		return errors.New("the key is empty")
	}
	if f.values == nil {
		f.values = map[string]string{}
	}
	f.values[key] = value
	return nil
}

// lifeFlags say when a sandbox ends.
type lifeFlags struct {
	prefix string // of the flags' names
	ttl    time.Duration
	onEnd  string
}

func (f *lifeFlags) add(cmd *cobra.Command) {
	f.describe(cmd, "time to live, such as 90s or 2h; 0 is for ever", "what happens when the time is up: kill or pause (default kill)")
}

func (f *lifeFlags) describe(cmd *cobra.Command, ttl, onEnd string) {
	cmd.Flags().DurationVar(&f.ttl, f.prefix+"ttl", 0, ttl)
	cmd.Flags().StringVar(&f.onEnd, f.prefix+"on-end", "", onEnd)
	cmd.RegisterFlagCompletionFunc(f.prefix+"on-end", words("kill", "pause"))
}

func (f *lifeFlags) check(cmd *cobra.Command) error {
	switch f.onEnd {
	case "", string(spore.EndKill), string(spore.EndPause):
	default:
		return usage(cmd, errors.New("--"+f.prefix+"on-end takes kill or pause, not "+quote(f.onEnd)))
	}
	if f.ttl < 0 {
		return usage(cmd, errors.New("--"+f.prefix+"ttl cannot be negative"))
	}
	return nil
}

// imageRef makes a reference to files absolute: the server has another working directory.
func imageRef(ref string) (string, error) {
	for _, scheme := range []string{"oci-archive:", "docker-archive:", "oci:"} {
		path, ok := strings.CutPrefix(ref, scheme)
		if !ok {
			continue
		}
		if path == "" {
			return "", spore.Invalidf("image", "%q names no file", ref)
		}
		abs, err := filepath.Abs(path)
		return scheme + abs, err
	}
	return ref, nil
}

// many does something for each of the named things, goes on after a failure, and tells of each.
func many(ctx context.Context, names []string, f func(name string) error) error {
	var errs []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := f(name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// words completes a flag from a fixed list.
func words(list ...string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}

// undoPatience bounds how long the undoing of something may take.
const undoPatience = 60 * time.Second

// makeOrUndo makes something and, when ctx ended meanwhile, unmakes it: Ctrl-C leaves nothing behind.
func makeOrUndo[T any](ctx context.Context, do func(context.Context) (T, error), undo func(context.Context, T) error) (T, error) {
	made, err := do(making(ctx))
	if err != nil || ctx.Err() == nil {
		return made, err
	}
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	interrupted := spore.Errorf(spore.CodeCanceled, "interrupted")
	if err := undo(undoCtx, made); err != nil {
		return made, errors.Join(interrupted, fmt.Errorf("it could not be undone: %w", err))
	}
	return made, interrupted
}

// with runs f with a connected client.
func (a *app) with(f func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.run(func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return f(cmd, c, args)
	})
}

// sizeInBytes is a number of bytes: a bare one, or with K, M or G.
type sizeInBytes int64

func (s *sizeInBytes) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *sizeInBytes) Type() string   { return "bytes" }

func (s *sizeInBytes) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n == 0 || n > 1<<40 {
		return errors.New("not a number of bytes; write 65536 or 64KiB")
	}
	*s = sizeInBytes(n)
	return nil
}
