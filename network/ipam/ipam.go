// Package ipam hands out this peer's pod addresses and remembers them on disk.
//
// A pod has one address of each of the peer's ranges (one, or one of each IP family).
// They belong to its UID until they are released; an IPv4 address that was released
// recently is given out last, so that a client with a stale answer does not reach a
// stranger, and an IPv6 address is never given out twice.
// Package network calls it; devices and routes are left to that.
package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/renameio/v2"
)

// ErrExhausted says that every address of one of the peer's ranges is in use.
var ErrExhausted = errors.New("no free pod address")

// Pool is the addresses of the peer's ranges. The first address of each is the peer's
// own. All methods may be called concurrently.
type Pool struct {
	path string

	mu     sync.Mutex
	pods   map[string][]netip.Addr // by UID, in the order of ranges; the lists are never changed
	ranges []addresses
}

// file is the format on disk. Version 1 had one range, with its fields at the top and
// one address a pod; it is read, and never written.
type file struct {
	Version int                     `json:"version"`
	Pods    map[string][]netip.Addr `json:"pods"`
	Ranges  []addresses             `json:"ranges"`
}

type fileV1 struct {
	addresses
	Pods map[string]netip.Addr `json:"pods"`
}

func parse(raw []byte) (f file, err error) {
	var version struct{ Version int }
	if err := json.Unmarshal(raw, &version); err != nil {
		return f, fmt.Errorf("%w; delete the file if no pod runs", err)
	}
	switch version.Version {
	case 1:
		var old fileV1
		err = json.Unmarshal(raw, &old)
		f.Ranges, f.Pods = []addresses{old.addresses}, map[string][]netip.Addr{}
		for uid, addr := range old.Pods {
			f.Pods[uid] = []netip.Addr{addr}
		}
	case 2:
		err = json.Unmarshal(raw, &f)
	default:
		err = fmt.Errorf("version %d is not known to this program", version.Version)
	}
	return f, err
}

// Open reads the allocations of path, which may not exist yet. prefixes are the peer's
// ranges. Allocations made for others are forgotten: the peer has been given new
// ranges, and its pods with them.
func Open(path string, prefixes ...netip.Prefix) (*Pool, error) {
	p := &Pool{path: path, pods: map[string][]netip.Addr{}}
	for _, prefix := range prefixes {
		p.ranges = append(p.ranges, newAddresses(prefix))
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pod addresses: %w", err)
	}
	f, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("read pod addresses %s: %w", path, err)
	}
	if !slices.EqualFunc(f.Ranges, p.ranges, func(a, b addresses) bool { return a.Prefix == b.Prefix }) {
		return p, nil
	}
	for uid, addrs := range f.Pods {
		if len(addrs) != len(p.ranges) {
			return nil, fmt.Errorf("read pod addresses %s: pod %s has %d addresses for %d ranges; delete the file if no pod runs", path, uid, len(addrs), len(p.ranges))
		}
		p.pods[uid] = addrs
		for i, addr := range addrs {
			p.ranges[i].taken[addr] = struct{}{}
		}
	}
	for i := range p.ranges {
		p.ranges[i].Freed = f.Ranges[i].Freed
		if p.ranges[i].usable(f.Ranges[i].Next) {
			p.ranges[i].Next = f.Ranges[i].Next
		}
	}
	return p, nil
}

// All returns a copy of the allocations by pod UID; each pod's are in the order of the
// ranges, and must not be changed.
func (p *Pool) All() map[string][]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.pods)
}

// Allocate returns the pod's addresses, one of each range in their order, new ones if it
// has none; they are on disk when Allocate returns. [ErrExhausted] if there is none left
// in one of the ranges; then none was taken of the others either.
func (p *Pool) Allocate(uid string) ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if addrs, ok := p.pods[uid]; ok {
		return slices.Clone(addrs), nil
	}
	pods, ranges := maps.Clone(p.pods), cloneAll(p.ranges)
	var addrs []netip.Addr
	for i := range ranges {
		a, err := ranges[i].pick()
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	pods[uid] = addrs
	if err := p.replace(pods, ranges); err != nil {
		return nil, err
	}
	return slices.Clone(addrs), nil
}

// Release gives the addresses of pods back. Unknown UIDs are ignored.
func (p *Pool) Release(uids ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pods, ranges := maps.Clone(p.pods), cloneAll(p.ranges)
	for _, uid := range uids {
		for i, a := range pods[uid] {
			ranges[i].release(a)
		}
		delete(pods, uid)
	}
	if len(pods) == len(p.pods) {
		return nil
	}
	return p.replace(pods, ranges)
}

// replace writes the file in one step, so that a power cut leaves the old or the new one;
// on an error all is as before. Called with mu.
func (p *Pool) replace(pods map[string][]netip.Addr, ranges []addresses) error {
	raw, err := json.Marshal(file{2, pods, ranges})
	if err != nil {
		return fmt.Errorf("encode pod addresses: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
		return fmt.Errorf("write pod addresses: %w", err)
	}
	if err := renameio.WriteFile(p.path, raw, 0o600, renameio.WithTempDir(filepath.Dir(p.path))); err != nil {
		return fmt.Errorf("write pod addresses: %w", err)
	}
	p.pods, p.ranges = pods, ranges
	return nil
}
