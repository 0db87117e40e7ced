package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// Store is what this package needs of raftstore.Store.
type Store interface {
	Get(key string) (*raftstore.KV, int64)
	List(prefix, start string, at int64, limit int) (raftstore.ListResult, error)
	Txn(ctx context.Context, txn raftstore.Txn) (raftstore.Result, error)
	Sync(ctx context.Context) error
}

var (
	// ErrNameTaken says that another machine has the name already.
	ErrNameTaken = errors.New("name is taken")
	// ErrRemoved says that the key is of a peer that has been removed.
	ErrRemoved = errors.New("peer has been removed")
	// ErrNoPeer says that there is no record of that name.
	ErrNoPeer = errors.New("no such peer")
	// ErrNoSubnet says that every share of the pod network is given away.
	ErrNoSubnet = errors.New("pod network is used up")
)

// maxRaces bounds how often a write is tried again because another one came before.
// Each lost race means that somebody else won, so this ends by itself; the bound is for
// a store that does not do what it says.
const maxRaces = 64

// Registry reads and writes the peer records. Reads are local and may lag.
type Registry struct {
	store    Store
	settings identity.Settings
	now      func() time.Time
}

// NewRegistry returns the registry of the cluster with these settings over store.
func NewRegistry(store Store, settings identity.Settings) *Registry {
	return &Registry{store: store, settings: settings, now: time.Now}
}

// Peers returns every record by ascending name.
func (r *Registry) Peers() ([]Peer, error) {
	list, err := r.store.List(PeersPrefix, "", 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	peers := make([]Peer, 0, len(list.KVs))
	for _, kv := range list.KVs {
		p, err := decodePeer(kv)
		if err != nil {
			return nil, err
		}
		peers = append(peers, p)
	}
	return peers, nil
}

// Peer returns the record of name; [ErrNoPeer].
func (r *Registry) Peer(name string) (Peer, error) {
	kv, _ := r.store.Get(PeersPrefix + name)
	if kv == nil {
		return Peer{}, fmt.Errorf("%s: %w", name, ErrNoPeer)
	}
	return decodePeer(kv)
}

// Allowed tells whether a peer with this key may still speak to us: it may,
// unless its key has been removed. A missing record is no reason to refuse:
// this peer may have slept while the other joined, and would then refuse the
// very leader from whom it could learn of the record.
func (r *Registry) Allowed(_, fingerprint string) bool {
	kv, _ := r.store.Get(removedPrefix + fingerprint)
	return kv == nil
}

// Register writes the record of p, giving it the lowest free share of the pod
// network, and returns it as it stands. A peer of the same name and key that is
// recorded already keeps its share; what else changed is updated, and nothing is written if
// nothing did. [ErrNameTaken], [ErrRemoved], [ErrNoSubnet], or the store's errors.
func (r *Registry) Register(ctx context.Context, p Peer) (Peer, error) {
	if err := r.store.Sync(ctx); err != nil {
		return Peer{}, err
	}
	for range maxRaces {
		q, done, err := r.tryRegister(ctx, p)
		if err != nil || done {
			return q, err
		}
	}
	return Peer{}, fmt.Errorf("record peer %s: the records keep changing; try again", p.Name)
}

func (r *Registry) tryRegister(ctx context.Context, p Peer) (Peer, bool, error) {
	if !r.Allowed(p.Name, p.Fingerprint) {
		return Peer{}, false, fmt.Errorf("%w: %s; delete its data directory, then join it again as a new peer", ErrRemoved, p.Name)
	}
	var txn raftstore.Txn
	if kv, _ := r.store.Get(PeersPrefix + p.Name); kv != nil {
		old, err := decodePeer(kv)
		if err != nil {
			return Peer{}, false, err
		}
		if old.Fingerprint != p.Fingerprint {
			return Peer{}, false, fmt.Errorf("%w: another machine (%s) is already the peer %q; choose another name with --name, "+
				"or, if that machine is gone for good, remove it first: rookery peers remove %s", ErrNameTaken, old.Address, p.Name, p.Name)
		}
		if old.Removing {
			return Peer{}, false, fmt.Errorf("%w: %s is being removed right now; delete its data directory, then join it as a new peer", ErrRemoved, p.Name)
		}
		p.PodCIDR, p.Joined = old.PodCIDR, old.Joined
		if p == old {
			return p, true, nil
		}
		txn = raftstore.Txn{{Key: kv.Key, If: kv.ModRevision}}
	} else {
		cidr, err := r.freeSubnet()
		if err != nil {
			return Peer{}, false, err
		}
		p.PodCIDR, p.Joined = cidr, r.now().UTC().Truncate(time.Second)
		txn = raftstore.Txn{{Key: PeersPrefix + p.Name},
			{Key: subnetKey(cidr), Kind: raftstore.Put, Value: []byte(p.Name)},
			{Key: removedPrefix + p.Fingerprint, Kind: raftstore.Check}}
	}
	value, err := json.Marshal(p)
	if err != nil {
		return Peer{}, false, fmt.Errorf("encode peer record: %w", err)
	}
	txn[0].Kind, txn[0].Value = raftstore.Put, value
	res, err := r.store.Txn(ctx, txn)
	if err != nil {
		return Peer{}, false, fmt.Errorf("record peer %s: %w", p.Name, err)
	}
	return p, res.Applied, nil
}

// Remove marks the record of name as to be removed. The leader then takes the peer out of Raft,
// handing on its votes and its leadership, and calls [Registry.Forget]. The peer's
// key is refused only after that: the only voter of a cluster must still be able to make
// another one. Idempotent; [ErrNoPeer]; it is an error to remove the last peer.
func (r *Registry) Remove(ctx context.Context, name string) error {
	return r.change(ctx, name, func(kv *raftstore.KV, p Peer) (raftstore.Txn, error) {
		if p.Removing {
			return nil, nil
		}
		peers, err := r.Peers()
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(peers, func(o Peer) bool { return o.Name != name && !o.Removing }) {
			return nil, fmt.Errorf("%s is the last peer of the cluster and cannot be removed; stop it and delete its data directory instead", name)
		}
		p.Removing = true
		value, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("encode peer record: %w", err)
		}
		return raftstore.Txn{{Key: kv.Key, If: kv.ModRevision, Kind: raftstore.Put, Value: value}}, nil
	})
}

// Forget ends what [Registry.Remove] began: the record goes, its share of the pod
// network is free, and its key is refused from now on. [ErrNoPeer].
func (r *Registry) Forget(ctx context.Context, name string) error {
	return r.change(ctx, name, func(kv *raftstore.KV, p Peer) (raftstore.Txn, error) {
		tomb, err := json.Marshal(removal{Name: name, Removed: r.now().UTC().Truncate(time.Second)})
		if err != nil {
			return nil, fmt.Errorf("encode removal: %w", err)
		}
		return raftstore.Txn{
			{Key: kv.Key, If: kv.ModRevision, Kind: raftstore.Delete},
			{Key: subnetKey(p.PodCIDR), If: raftstore.Any, Kind: raftstore.Delete},
			{Key: removedPrefix + p.Fingerprint, If: raftstore.Any, Kind: raftstore.Put, Value: tomb},
		}, nil
	})
}

// change writes what f makes of the record (nothing if it returns no Txn), again if the
// record changed meanwhile.
func (r *Registry) change(ctx context.Context, name string, f func(*raftstore.KV, Peer) (raftstore.Txn, error)) error {
	if err := r.store.Sync(ctx); err != nil {
		return err
	}
	for range maxRaces {
		kv, _ := r.store.Get(PeersPrefix + name)
		if kv == nil {
			return fmt.Errorf("%s: %w", name, ErrNoPeer)
		}
		p, err := decodePeer(kv)
		if err != nil {
			return err
		}
		txn, err := f(kv, p)
		if err != nil || txn == nil {
			return err
		}
		res, err := r.store.Txn(ctx, txn)
		if err != nil {
			return fmt.Errorf("change record of peer %s: %w", name, err)
		}
		if res.Applied {
			return nil
		}
	}
	return fmt.Errorf("change record of peer %s: it keeps changing; try again", name)
}

// removal is the tombstone of a removed key. It stays for ever: the key's
// certificate is valid for years, and the few bytes are cheap.
type removal struct {
	Name    string    `json:"name"`
	Removed time.Time `json:"removed"`
}

func subnetKey(p netip.Prefix) string {
	return subnetsPrefix + strings.ReplaceAll(p.String(), "/", "-")
}

func (r *Registry) freeSubnet() (netip.Prefix, error) {
	list, err := r.store.List(subnetsPrefix, "", 0, 0)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list subnets: %w", err)
	}
	taken := make(map[string]bool, len(list.KVs))
	for _, kv := range list.KVs {
		taken[kv.Key] = true
	}
	return lowestFree(r.settings.PodCIDR, r.settings.PeerBits(), func(p netip.Prefix) bool { return taken[subnetKey(p)] })
}

// lowestFree walks the shares of the given length within network from the lowest one up.
func lowestFree(network netip.Prefix, bits int, taken func(netip.Prefix) bool) (netip.Prefix, error) {
	for p := netip.PrefixFrom(network.Masked().Addr(), bits); network.Contains(p.Addr()); {
		if !taken(p) {
			return p, nil
		}
		next, ok := nextPrefix(p)
		if !ok {
			break
		}
		p = next
	}
	return netip.Prefix{}, fmt.Errorf("%w: %s has no free /%d; remove peers that are gone (rookery peers remove NAME)", ErrNoSubnet, network, bits)
}

// nextPrefix is the one that follows p; false after the last one of the address family.
func nextPrefix(p netip.Prefix) (netip.Prefix, bool) {
	b := p.Addr().AsSlice()
	for i, step := (p.Bits()-1)/8, 1<<(7-(p.Bits()-1)%8); i >= 0; i, step = i-1, 1 {
		sum := int(b[i]) + step
		b[i] = byte(sum)
		if sum < 256 {
			a, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(a, p.Bits()), true
		}
	}
	return netip.Prefix{}, false
}
