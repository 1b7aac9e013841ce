package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm"
)

// ownDrives is how many drives every VM has of its own: the artifact and its disk. Those of the caller come after them.
const ownDrives = 2

// memoryFile is the RAM of a VM that was booted rather than thawed.
const memoryFile = "memory.img"

// shapeExtra is what a template's shape says beside the VM: what a boot on its disk needs to know.
type shapeExtra struct {
	Process spore.Process `json:"process"`
}

func extraOf(p spore.Process) (json.RawMessage, error) { return json.Marshal(shapeExtra{p}) }

// imageProcess is what the image of a frozen state wants run.
func imageProcess(s frozen.Shape, frozenID string) (spore.Process, error) {
	var extra shapeExtra
	if len(s.Extra) == 0 {
		return spore.Process{}, spore.Errorf(spore.CodeStale, "%s was frozen by a Spore that did not keep what a boot needs", frozenID).
			WithHint("make it again: spore template redo")
	}
	err := json.Unmarshal(s.Extra, &extra)
	return extra.Process, err
}

// foreign are the caller's drives in a shape.
func foreign(s frozen.Shape) []frozen.Drive { return s.Drives[min(ownDrives, len(s.Drives)):] }

// disks answers the drives that a sandbox is given of the caller's own, as far as they may be given.
func (n *Node) disks(s *spore.Sandbox) ([]vmm.Drive, error) {
	if s == nil || len(s.Disks) == 0 {
		return nil, nil
	}
	if err := spore.ValidateDisks(s.Disks); err != nil {
		return nil, err
	}
	var drives []vmm.Drive
	for i, d := range s.Disks {
		path, err := n.allowed(d.Path)
		if err != nil {
			return nil, err
		}
		drives = append(drives, vmm.Drive{ID: fmt.Sprint("data", i+1), Path: path, ReadOnly: d.ReadOnly, Foreign: true})
	}
	return drives, nil
}

// allowed answers where a path of the caller's really is, if that lies in a directory that may be given from.
func (n *Node) allowed(path string) (string, error) {
	if len(n.opt.DiskDirs) == 0 {
		e := spore.Errorf(spore.CodeUnsupported, "node %s gives sandboxes no disks of the machine's", n.opt.ID).WithHint("allow a directory: spore serve --disk-dir DIR")
		e.Field = "disks"
		return "", e
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", spore.Invalidf("disks.path", "%s is not there", path).WithCause(err)
	}
	for _, dir := range n.opt.DiskDirs {
		dir, err := filepath.EvalSymlinks(dir)
		if err == nil && strings.HasPrefix(real, strings.TrimSuffix(dir, "/")+"/") {
			return real, nil
		}
	}
	return "", spore.Invalidf("disks.path", "%s is in no directory that disks may be given from", path).
		WithHint("allow its directory: spore serve --disk-dir %s", filepath.Dir(real))
}

// startsCold says whether a sandbox is booted on the disk of a frozen state rather than thawed from it: its drives were not there
// when that was frozen. When they were they must be named again, since the frozen guest knows what is on them.
func startsCold(shape frozen.Shape, s *spore.Sandbox, frozenID string) (bool, error) {
	had := foreign(shape)
	if s == nil && len(had) == 0 || s != nil && len(had) == 0 && len(s.Disks) == 0 {
		return false, nil
	}
	if s != nil && len(had) == 0 {
		return true, nil
	}
	same := s != nil && slices.EqualFunc(had, s.Disks, func(a frozen.Drive, b spore.Disk) bool { return a.ReadOnly == b.ReadOnly })
	if !same {
		e := spore.Errorf(spore.CodeConflict, "%s was frozen with %d disks of the caller's, whose content it does not hold", frozenID, len(had)).
			WithHint("name them again, in order, with what was on them then: --disk PATH")
		e.Field = "disks"
		return false, e
	}
	return false, nil
}

// boots says whether a sandbox cannot be thawed.
func (n *Node) boots(s *spore.Sandbox, frozenID string) (bool, error) {
	if len(s.Disks) == 0 {
		return false, nil
	}
	m, err := n.opt.Frozen.Manifest(frozenID)
	if err != nil {
		return false, err
	}
	return startsCold(m.Shape, s, frozenID)
}

// coldStart boots a VM on the disk of a frozen state, with the caller's drives beside it. On error nothing is left.
func (n *Node) coldStart(ctx context.Context, frozenID string, o owner, s *spore.Sandbox) (_ *machine, err error) {
	drives, err := n.disks(s)
	if err != nil {
		return nil, err
	}
	img, err := n.opt.Frozen.OpenDisk(ctx, frozenID)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	shape := img.Manifest.Shape
	process, err := imageProcess(shape, frozenID)
	if err != nil {
		return nil, err
	}
	for _, id := range []string{shape.Artifact, shape.Kernel} { // until the pin says so
		n.holds.hold(id)
		defer n.holds.drop(id)
	}
	info, err := n.Engine(ctx)
	if err != nil {
		return nil, err
	}
	shape.Engine = frozen.Engine(info)
	shape.Drives = slices.Clone(shape.Drives)
	for _, d := range drives {
		shape.Drives = append(shape.Drives, frozen.Drive{ID: d.ID, ReadOnly: d.ReadOnly})
	}
	release, err := n.guard.reserve("starting from "+frozenID, int64(shape.MemoryMiB)*mib+n.cloneBytes(img.DiskBytes()), toStart)
	if err != nil {
		return nil, err
	}
	defer release()
	id := newMachineID()
	if err := n.cap.take(ctx, id, shape.MemoryMiB); err != nil {
		return nil, err
	}
	m := n.newMachine(id, deadVM{}, o)
	defer func() {
		if err == nil {
			return
		}
		if end := n.end(context.WithoutCancel(ctx), m); end != nil {
			n.log.Error("clearing away after a failed boot", "vm", id, "err", end)
		}
	}()
	done := n.cap.starting(ctx)
	if done == nil {
		return nil, spore.Errorf(spore.CodeBusy, "too many sandboxes are starting").WithCause(ctx.Err()).WithHint("try again in a moment")
	}
	defer done()
	o.FrozenID, o.Shape = frozenID, shape
	if o.Config, err = n.config(ctx, id, shape, filepath.Join(n.machineDir(id), memoryFile)); err != nil {
		return nil, err
	}
	o.Config.Drives = append(o.Config.Drives, drives...)
	throttle(&o.Config, o.Limits)
	m.owner = o
	if _, err := n.makeDir(id, o); err != nil {
		return nil, err
	}
	link, err := n.plug(ctx, &o, s)
	if err != nil {
		return nil, err
	}
	m.owner = o
	if err := writeOwner(n.machineDir(id), o); err != nil {
		return nil, err
	}
	if err := n.opt.Frozen.Pin(id, img.Manifest); err != nil {
		return nil, err
	}
	if err := img.CloneDisk(ctx, n.diskPath(id)); err != nil {
		return nil, err
	}
	vm, err := n.opt.Engine.Boot(ctx, o.Config)
	if err != nil {
		return nil, err
	}
	m.vm = vm
	if o.Limits.CPUs != 0 {
		if err := n.govern(ctx, m, o.Limits.CPUs); err != nil {
			return nil, err
		}
	}
	if err := n.comeUp(ctx, m, process); err != nil {
		return nil, err
	}
	if err := m.greet(ctx, s, link); err != nil {
		return nil, err
	}
	n.cap.landed(id)
	return m, nil
}

// comeUp waits for the agent of a VM that boots, and has it run what the image wants run.
func (n *Node) comeUp(ctx context.Context, m *machine, p spore.Process) error {
	booting, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	a, err := m.connectWhileAlive(booting)
	if err != nil {
		return m.unreached(ctx, err, "the guest did not boot")
	}
	return cmp.Or(ctx.Err(), configure(booting, a, p, func(string) {}))
}
