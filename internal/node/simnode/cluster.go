// Package simnode is a machine that is only a model: artifacts, frozen states, VMs, disk and memory are numbers in this
// process, so that what stands above machines can be tried with a thousand of them, and with any fault at any step.
//
// It keeps the contract of center.Node as the real node does (package nodetest runs on both), takes microseconds for each
// call, starts no goroutine and has no randomness: the same calls and the same faults give the same answers. A Cluster is
// a world of machines; a Machine outlives whoever talks to it; a Handle is one controller's connection to a machine.
package simnode

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sporevm/spore"
)

// ClusterOptions say what the machines of a world share.
type ClusterOptions struct {
	// Now is the world's clock; default time.Now.
	Now func() time.Time
	// Fault is called at each step of each call, as in ("n1", "bake:boot"), without any lock held, in the goroutine of the
	// call. It may take its time, pull levers of any machine, make other calls, and answer an error: ErrLate and its kin, or
	// one that the step then fails with. Steps lists all names. nil: nothing ever goes wrong.
	Fault func(node, step string) error
	// Images are what can be built, by reference. nil: every reference is an image of its own.
	Images map[string]Image
}

// Image is what a reference stands for in the registry of a world.
type Image struct {
	Content   string // what its layers hold: images of one content become one artifact; default the reference
	SizeBytes int64  // of the artifact; default DefaultImageBytes
	Process   spore.Process
	Err       error // why it cannot be pulled
}

// DefaultImageBytes is the size of the artifact of an image that sets none.
const DefaultImageBytes = 256 << 10

// Cluster is a world of machines that can reach each other. Its methods may be called from many goroutines.
type Cluster struct {
	now   func() time.Time
	fault func(node, step string) error

	mu       sync.Mutex
	machines map[string]*Machine
	listed   bool // only what is in images can be pulled
	images   map[string]Image
	gone     map[string]bool   // references that were removed
	digests  map[string]string // of artifacts, by id
	cut      map[[2]string]bool
}

// NewCluster makes a world without machines.
func NewCluster(o ClusterOptions) *Cluster {
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Cluster{
		now: o.Now, fault: o.Fault, listed: o.Images != nil, images: map[string]Image{}, machines: map[string]*Machine{},
		gone: map[string]bool{}, digests: map[string]string{}, cut: map[[2]string]bool{},
	}
	maps.Copy(c.images, o.Images)
	return c
}

// New makes a machine in a world of its own.
func New(o Options) *Machine { return NewCluster(ClusterOptions{}).New(o) }

// New adds a machine. It panics when the id is taken: that is a mistake of the test.
func (c *Cluster) New(o Options) *Machine {
	m := newMachine(c, o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.machines[m.id] != nil {
		panic("simnode: there are two machines " + m.id)
	}
	c.machines[m.id] = m
	return m
}

// Machine answers a machine, nil when there is none of that id.
func (c *Cluster) Machine(id string) *Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.machines[id]
}

// Machines lists all, in the order of their ids.
func (c *Cluster) Machines() []*Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*Machine, 0, len(c.machines))
	for _, id := range slices.Sorted(maps.Keys(c.machines)) {
		list = append(list, c.machines[id])
	}
	return list
}

// Remove takes a machine away for good: it, and what was on it, is not to be had any more.
func (c *Cluster) Remove(id string) {
	c.mu.Lock()
	m := c.machines[id]
	delete(c.machines, id)
	c.mu.Unlock()
	if m != nil {
		m.SetReachable(false)
	}
}

// Cut parts two machines from each other, or joins them again; controllers reach both as before.
func (c *Cluster) Cut(a, b string, apart bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[[2]string{a, b}], c.cut[[2]string{b, a}] = apart, apart
}

// peer answers a machine that another can reach; nil when it cannot.
func (c *Cluster) peer(from, to string) *Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut[[2]string{from, to}] || from == to {
		return nil
	}
	return c.machines[to]
}

// SetImage makes a reference stand for an image, from now on.
func (c *Cluster) SetImage(reference string, i Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.gone, reference)
	c.images[reference] = i
}

// RemoveImage makes a reference unknown to the registry.
func (c *Cluster) RemoveImage(reference string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, reference)
	c.gone[reference] = true
}

// resolve answers the image of a reference, complete.
func (c *Cluster) resolve(reference string) (Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, known := c.images[reference]
	if c.gone[reference] || !known && c.listed {
		return i, spore.Errorf(spore.CodeNotFound, "the registry has no image %s", reference).WithHint("check the spelling")
	}
	if i.Content == "" {
		i.Content = reference
	}
	if i.SizeBytes == 0 {
		i.SizeBytes = DefaultImageBytes
	}
	return i, i.Err
}

// digest answers the digest of an artifact's bytes, which are the same wherever it is built.
func (c *Cluster) digest(id string, size int64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.digests[id]; d != "" {
		return d
	}
	h := sha256.New()
	for buf := make([]byte, 64<<10); size > 0; size -= int64(len(buf)) {
		buf = buf[:min(size, int64(len(buf)))]
		fillArtifact(buf, id, 0) // every full buffer is alike: its size is a multiple of the pattern's
		h.Write(buf)
	}
	d := "sha256:" + hex.EncodeToString(h.Sum(nil))
	c.digests[id] = d
	return d
}

// hashOf makes an id of what it is made from.
func hashOf(parts ...any) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%v\n", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
