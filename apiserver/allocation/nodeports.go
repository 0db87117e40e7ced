package allocation

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"

	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last int }

// NodePorts allocates node ports, one key of the store each. Dry runs are the business of
// upstream's PortAllocationOperation. Its methods may be called concurrently; those that
// take or give back wait for the store.
type NodePorts struct {
	claims claims
	ports  PortRange
}

// NewNodePorts allocates of ports, and keeps what is taken in store, under prefix
// ("/registry").
func NewNodePorts(store raftstore.Store, prefix string, ports PortRange) *NodePorts {
	return &NodePorts{claims{store, prefix + "/ranges/servicenodeports/"}, ports}
}

var _ portallocator.Interface = (*NodePorts)(nil)

// Allocate claims a given port.
func (n *NodePorts) Allocate(port int) error {
	if port < n.ports.First || port > n.ports.Last {
		return &portallocator.ErrNotInRange{ValidPorts: fmt.Sprintf("%d-%d", n.ports.First, n.ports.Last)}
	}
	err := n.claims.take(strconv.Itoa(port))
	if errors.Is(err, errTaken) {
		return portallocator.ErrAllocated
	}
	return err
}

// AllocateNext claims a free port, from a random place on. The first ports are
// left for those who choose theirs: upstream's rule, min(max(16, size/32), 128).
func (n *NodePorts) AllocateNext() (int, error) {
	size := n.ports.Last - n.ports.First + 1
	low := 0
	if size >= 32 {
		low = min(max(16, size/32), 128)
	}
	for _, part := range []struct{ first, n int }{{n.ports.First + low, size - low}, {n.ports.First, low}} {
		if part.n == 0 {
			continue
		}
		start := rand.IntN(part.n)
		for i := range part.n {
			port := part.first + (start+i)%part.n
			if n.Has(port) {
				continue
			}
			switch err := n.Allocate(port); {
			case err == nil:
				return port, nil
			case !errors.Is(err, portallocator.ErrAllocated):
				return 0, err
			}
		}
	}
	return 0, portallocator.ErrFull
}

// Release gives a port back.
func (n *NodePorts) Release(port int) error { return n.claims.release(strconv.Itoa(port)) }

// ForEach calls f for each claimed port.
func (n *NodePorts) ForEach(f func(int)) {
	held, err := n.claims.all()
	if err != nil { // a list at the newest revision has no way to fail but a closed store
		return
	}
	for name := range held {
		if port, err := strconv.Atoi(name); err == nil {
			f(port)
		}
	}
}

// Has tells whether a port is claimed as far as this peer knows.
func (n *NodePorts) Has(port int) bool { return n.claims.has(strconv.Itoa(port)) }

func (n *NodePorts) Destroy()       {}
func (n *NodePorts) EnableMetrics() {}
