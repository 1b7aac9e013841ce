package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/cgroup"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/network/usernet"
)

// userNetwork says which engines can connect VMs through a process of their own each.
func userNetwork() Finding {
	f := Finding{Name: "network user", Verdict: FindingOK, Detail: "a process for each sandbox, with its own network stack"}
	if err := usernet.ProbeTap(); err != nil {
		// QEMU needs nothing of the host for it, so whoever does not use Firecracker lacks nothing.
		f.Detail += "; with QEMU only: " + spore.AsError(err).Message
	}
	return f
}

// isolatedNetwork asks the manager of isolated networks whether it could do its work here.
func isolatedNetwork(dataDir string) Finding {
	f := Finding{Name: "network isolated", Verdict: FindingOK, Detail: "a network namespace, NAT and nftables for each sandbox"}
	dir, done, err := networksDir(dataDir)
	if err != nil {
		return broken(f.Name, FindingWarn, err)
	}
	m, err := network.New(network.Options{Dir: dir})
	if err == nil {
		_, err = m.Leftovers(nil) // which reads links, namespaces and rules, as all else does
		err = errors.Join(err, m.Close())
	}
	if err = errors.Join(err, done()); err != nil {
		return broken(f.Name, FindingWarn, err)
	}
	return f
}

// networksDir is where a server on dataDir keeps the records of networks, made for as long as it is looked at.
func networksDir(dataDir string) (dir string, done func() error, err error) {
	dir = filepath.Join(dataDir, "networks")
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	return dir, func() error {
		for _, d := range made {
			// Somebody may have begun to use it.
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}, nil
}

// processors says whether processor time can be shared out.
func processors(ctx context.Context, dataDir string) Finding {
	const name = "processor limits"
	owner, err := cgroup.Fingerprint(nearest(dataDir))
	if err != nil {
		return broken(name, FindingWarn, err)
	}
	c, err := cgroup.Open(ctx, cgroup.Options{Owner: owner})
	if err != nil {
		return broken(name, FindingWarn, err)
	}
	info := c.Info()
	return Finding{Name: name, Verdict: FindingOK, Detail: "control groups " + string(info.Version) + " at " + info.Path}
}
