// Package ipam hands out this peer's pod addresses and remembers them on disk.
//
// An address belongs to a pod's UID until it is released; one that was released
// recently is given out last, so that a client with a stale answer does not reach
// a stranger. Package network calls it; devices and routes are left to that.
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

// ErrExhausted says that every address of the peer's range is in use.
var ErrExhausted = errors.New("no free pod address")

// Pool is the addresses of one prefix. The first address is the peer's own; the
// network and the last (broadcast) address are not used either. All methods may
// be called concurrently.
type Pool struct {
	path   string
	prefix netip.Prefix

	mu    sync.Mutex
	used  map[string]netip.Addr   // by pod UID
	taken map[netip.Addr]struct{} // the values of used
	freed []netip.Addr            // oldest first
	next  netip.Addr              // candidates from here on were never used
}

// file is the format on disk. Version 1 is the only one.
type file struct {
	Version int                   `json:"version"`
	Prefix  netip.Prefix          `json:"prefix"`
	Pods    map[string]netip.Addr `json:"pods"`
	Freed   []netip.Addr          `json:"freed,omitempty"`
	Next    netip.Addr            `json:"next"`
}

// Open reads the allocations of path, which may not exist yet. Allocations made
// for another prefix are forgotten: the peer has been given a new range, and its
// pods with it.
func Open(path string, prefix netip.Prefix) (*Pool, error) {
	p := &Pool{path: path, prefix: prefix.Masked(), used: map[string]netip.Addr{}, taken: map[netip.Addr]struct{}{}}
	p.next = p.Own().Next()
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pod addresses: %w", err)
	}
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("read pod addresses %s: %w; delete the file if no pod runs", path, err)
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("read pod addresses %s: version %d is not known to this program", path, f.Version)
	}
	if f.Prefix != p.prefix {
		return p, nil
	}
	for uid, addr := range f.Pods {
		p.used[uid], p.taken[addr] = addr, struct{}{}
	}
	p.freed = f.Freed
	if p.usable(f.Next) {
		p.next = f.Next
	}
	return p, nil
}

// Own is the peer's own address, the first of the prefix.
func (p *Pool) Own() netip.Addr { return p.prefix.Addr().Next() }

// Get returns the pod's address without allocating one.
func (p *Pool) Get(uid string) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.used[uid]
	return a, ok
}

// All returns a copy of the allocations by pod UID.
func (p *Pool) All() map[string]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.used)
}

// Allocate returns the pod's address, a new one if it has none; it is on disk
// when Allocate returns. [ErrExhausted] if there is none left.
func (p *Pool) Allocate(uid string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.used[uid]; ok {
		return a, nil
	}
	freed, next := p.freed, p.next
	a, err := p.pick()
	if err != nil {
		return netip.Addr{}, err
	}
	p.used[uid], p.taken[a] = a, struct{}{}
	if err := p.save(); err != nil {
		delete(p.used, uid)
		delete(p.taken, a)
		p.freed, p.next = freed, next
		return netip.Addr{}, err
	}
	return a, nil
}

// pick takes a never used address, then the one that was released longest ago.
func (p *Pool) pick() (netip.Addr, error) {
	for p.usable(p.next) {
		a := p.next
		p.next = a.Next()
		if _, ok := p.taken[a]; !ok && !slices.Contains(p.freed, a) {
			return a, nil
		}
	}
	for len(p.freed) > 0 {
		a := p.freed[0]
		p.freed = slices.Clone(p.freed[1:])
		if _, ok := p.taken[a]; !ok && p.usable(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all of %s are in use by %d pods", ErrExhausted, p.prefix, len(p.used))
}

func (p *Pool) usable(a netip.Addr) bool {
	return a.IsValid() && p.prefix.Contains(a) && a != p.prefix.Addr() && a != p.Own() &&
		(a.Is6() || p.prefix.Contains(a.Next())) // the last one of an IPv4 range is its broadcast address
}

// Release gives the addresses of pods back. Unknown UIDs are ignored.
func (p *Pool) Release(uids ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	used, taken, freed := maps.Clone(p.used), maps.Clone(p.taken), slices.Clone(p.freed)
	for _, uid := range uids {
		if a, ok := used[uid]; ok {
			delete(used, uid)
			delete(taken, a)
			freed = append(freed, a)
		}
	}
	if len(used) == len(p.used) {
		return nil
	}
	oldUsed, oldTaken, oldFreed := p.used, p.taken, p.freed
	p.used, p.taken, p.freed = used, taken, freed
	if err := p.save(); err != nil {
		p.used, p.taken, p.freed = oldUsed, oldTaken, oldFreed
		return err
	}
	return nil
}

// save replaces the file in one step, so that a power cut leaves the old or the new one.
func (p *Pool) save() error {
	raw, err := json.Marshal(file{1, p.prefix, p.used, p.freed, p.next})
	if err != nil {
		return fmt.Errorf("encode pod addresses: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
		return fmt.Errorf("write pod addresses: %w", err)
	}
	if err := renameio.WriteFile(p.path, raw, 0o600, renameio.WithTempDir(filepath.Dir(p.path))); err != nil {
		return fmt.Errorf("write pod addresses: %w", err)
	}
	return nil
}
