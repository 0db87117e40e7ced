// Package hostports remembers which ports of this machine lead to which pod, and
// says what the rules for that are.
//
// The book is kept on disk beside the pods' addresses, so that a restarted daemon
// leaves the rules as they are. Package network calls it and writes the rules;
// that two pods with the same port do not come to one peer is the scheduler's part,
// and here only the last line against it.
package hostports

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
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	corev1 "k8s.io/api/core/v1"
)

// Port is a port of the machine that leads to one of a pod.
type Port struct {
	// IP is an address of the machine; zero: all that it has, 0.0.0.0 or ::: all of one family.
	IP        netip.Addr `json:"ip,omitzero"`
	Proto     string     `json:"proto"` // lower case, as nft has it
	Host      uint16     `json:"host"`
	Container uint16     `json:"container"`
}

func (p Port) String() string {
	at := fmt.Sprintf("%d/%s", p.Host, strings.ToUpper(p.Proto))
	if p.IP.IsValid() {
		at += " of " + p.IP.String()
	}
	return at
}

// of tells whether the port may be one of the machine's addresses of a's family.
func (p Port) of(a netip.Addr) bool { return !p.IP.IsValid() || p.IP.Is4() == a.Is4() }

// everywhere tells whether the port is one of all addresses, of one or of both families.
func (p Port) everywhere() bool { return !p.IP.IsValid() || p.IP.IsUnspecified() }

// clashes: nobody could tell for which of the two a packet is.
func (p Port) clashes(o Port) bool {
	return p.Proto == o.Proto && p.Host == o.Host && (!o.IP.IsValid() || p.of(o.IP)) && (p.IP == o.IP || p.everywhere() || o.everywhere())
}

// Of are the ports that containers ask for. As upstream, a hostIP of 0.0.0.0 or :: means
// all of the machine's addresses of that family, and none means all.
func Of(ports []corev1.ContainerPort) []Port {
	var out []Port
	for _, c := range ports {
		if c.HostPort == 0 {
			continue
		}
		p := Port{Proto: "tcp", Host: uint16(c.HostPort), Container: uint16(c.ContainerPort)}
		if c.Protocol != "" {
			p.Proto = strings.ToLower(string(c.Protocol))
		}
		if c.HostIP != "" {
			ip, err := netip.ParseAddr(c.HostIP)
			if err != nil {
				continue // the API has let none pass
			}
			p.IP = ip.Unmap()
		}
		out = append(out, p)
	}
	return out
}

// Book is the ports of all pods of this peer. All methods may be called concurrently.
type Book struct {
	path     string
	reserved map[string][]Port // what they are for → ports that no pod gets

	mu   sync.Mutex
	pods map[string][]Port // by UID; never empty lists
}

// file is the format on disk. Version 1 is the only one.
type file struct {
	Version int               `json:"version"`
	Pods    map[string][]Port `json:"pods"`
}

// Open reads the book at path, which may not exist yet. reserved are ports that no
// pod may take, by what they are for; nil: none.
func Open(path string, reserved map[string][]Port) (*Book, error) {
	b := &Book{path: path, reserved: reserved, pods: map[string][]Port{}}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read host ports: %w", err)
	}
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("read host ports %s: %w; delete the file, its pods write it again", path, err)
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("read host ports %s: version %d is not known to this program", path, f.Version)
	}
	if f.Pods != nil {
		b.pods = f.Pods
	}
	return b, nil
}

// All returns a copy of what is published, by pod UID.
func (b *Book) All() map[string][]Port {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.pods)
}

// Publish makes ports the pod's, instead of those that it had. One that is another
// pod's, or reserved, is an error in the user's words, and nothing changed.
func (b *Book) Publish(uid string, ports []Port) (changed bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.pods[uid], ports) {
		return false, nil
	}
	for _, p := range ports {
		for what, list := range b.reserved {
			if slices.ContainsFunc(list, p.clashes) {
				return false, fmt.Errorf("hostPort %s is this machine's own: %s; choose another", p, what)
			}
		}
		for other, list := range b.pods {
			if other != uid && slices.ContainsFunc(list, p.clashes) {
				return false, fmt.Errorf("hostPort %s is already taken on this machine by the pod with UID %s", p, other)
			}
		}
	}
	next := maps.Clone(b.pods)
	if next[uid] = ports; len(ports) == 0 {
		delete(next, uid)
	}
	return true, b.replace(next)
}

// Release gives the ports of pods back. Unknown UIDs are ignored.
func (b *Book) Release(uids ...string) (changed bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := maps.Clone(b.pods)
	for _, uid := range uids {
		delete(next, uid)
	}
	if len(next) == len(b.pods) {
		return false, nil
	}
	return true, b.replace(next)
}

// replace writes the file in one step, so that a power cut leaves the old or the
// new one. Called with mu.
func (b *Book) replace(next map[string][]Port) error {
	raw, err := json.Marshal(file{1, next})
	if err != nil {
		return fmt.Errorf("encode host ports: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
		return fmt.Errorf("write host ports: %w", err)
	}
	if err := renameio.WriteFile(b.path, raw, 0o600, renameio.WithTempDir(filepath.Dir(b.path))); err != nil {
		return fmt.Errorf("write host ports: %w", err)
	}
	b.pods = next
	return nil
}
