// Package network moves packets: it gives each pod of this peer its interface and
// address, carries packets between peers, and (in network/services) balances
// Services.
//
// Pods are routed, not bridged: each hangs on its own veth with a /32, so that
// every packet passes the machine's own IP layer, where a Service's addresses
// are translated forth and back, and where a packet with somebody else's source
// address is dropped. See docs/design/packets.md.
//
// It leaves to others who the peers are and which of them live (cluster), when
// a pod begins and ends (node) and names (dnsserver). cmd/rookery composes it:
// [Network.Run] for the life of the daemon, [Network.SetPeers] whenever
// membership changes; node calls [Network.Attach] and [Network.Detach].
//
// State in the kernel outlives the daemon, and the next start adopts it.
// Everything happens in the network namespace of the process.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/hostports"
	"github.com/rundigitalplatform/rookery/network/ipam"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Peer is another peer as far as packets are concerned.
type Peer = overlay.Peer

// Key is a WireGuard key.
type Key = overlay.Key

// Config is what a [Network] is made from. All fields without a default are required.
type Config struct {
	Address  netip.Addr // this peer's address on the network between the machines, at first
	Families []Family   // one, or two of different IP families; the first is whose address comes first
	Backend  string     // "wireguard" (default), "vxlan" or "direct"
	Key      Key        // WireGuard private key; not looked at by the other backends
	Port     int        // UDP port of WireGuard, the same on every peer; default 51820
	MTU      int        // of the network between the machines, at most; default: that of the device with Address
	Dir      string     // where ipam.json and hostports.json are kept
	// Reserved are ports of this machine that no pod may take as its host port, whether
	// TCP or UDP, by what they are for; nil: none.
	Reserved  map[string]uint16
	Admission Admission // what pods wait for; nil: nothing
	Log       *slog.Logger
	// WireGuard is the command that runs [userwg.Run], for kernels that have no WireGuard. Began
	// is told when that process started, also one that was there before; it must not block. nil: nobody is.
	WireGuard []string
	Began     func(time.Time) `json:"-"`
}

// Family is what the cluster has of one IP family.
type Family struct {
	PodCIDR     netip.Prefix // this peer's pod range; its first address becomes the peer's own
	ClusterCIDR netip.Prefix // of all peers, e.g. 10.42.0.0/16
	ServiceCIDR netip.Prefix // e.g. 10.43.0.0/16
	DNS         netip.Addr   // address of the cluster DNS, local to each peer, e.g. 10.43.0.10
}

// Own is this peer's own address on the pod network.
func (f Family) Own() netip.Addr { return f.PodCIDR.Masked().Addr().Next() }

// Table is the family of the rules for these addresses.
func (f Family) Table() knftables.Family { return nft.FamilyOf(f.PodCIDR.Addr()) }

// validate says what is wrong with the ranges of a machine with that address.
func (f Family) validate(machine netip.Addr) error {
	switch {
	case !f.PodCIDR.IsValid() || !f.ClusterCIDR.IsValid() || !f.ServiceCIDR.IsValid():
		return errors.New("pod, cluster and service ranges must be set")
	case f.ServiceCIDR.Addr().Is4() != f.PodCIDR.Addr().Is4():
		return fmt.Errorf("service range %s and pod range %s are of different IP families", f.ServiceCIDR, f.PodCIDR)
	case !f.ClusterCIDR.Overlaps(f.PodCIDR) || f.ClusterCIDR.Bits() > f.PodCIDR.Bits():
		return fmt.Errorf("pod range %s is not inside the cluster range %s", f.PodCIDR, f.ClusterCIDR)
	case f.ClusterCIDR.Overlaps(f.ServiceCIDR):
		return fmt.Errorf("service range %s and cluster range %s overlap: choose others", f.ServiceCIDR, f.ClusterCIDR)
	case f.ClusterCIDR.Contains(machine) || f.ServiceCIDR.Contains(machine):
		return fmt.Errorf("this machine's address %s is inside the cluster's own ranges: choose others", machine)
	case !f.ServiceCIDR.Contains(f.DNS):
		return fmt.Errorf("DNS address %s is not inside the service range %s", f.DNS, f.ServiceCIDR)
	}
	return nil
}

// Admission holds a pod back between its address and its interface; package policy's
// Controller is one.
type Admission interface {
	// Admit returns when the pods that have an address now may run.
	Admit(ctx context.Context) error
}

func (c Config) withDefaults() Config {
	if c.Backend == "" {
		c.Backend = "wireguard"
	}
	if c.Port == 0 {
		c.Port = 51820
	}
	if c.Began == nil {
		c.Began = func(time.Time) {}
	}
	return c
}

// Validate says what is wrong with the configuration, in the user's words.
func (c Config) Validate() error {
	c = c.withDefaults()
	if err := overlay.ValidKind(c.Backend); err != nil {
		return err
	}
	switch {
	case !c.Address.IsValid():
		return errors.New("the peer needs an address on the network between the machines")
	case len(c.Families) == 0:
		return errors.New("the pod network needs addresses of at least one IP family")
	case len(c.Families) > 2 || len(c.Families) == 2 && c.Families[0].Table() == c.Families[1].Table():
		return errors.New("the pod network can have one range of each IP family and no more")
	case c.Dir == "" || c.Log == nil || len(c.WireGuard) == 0:
		return errors.New("directory, log and the command that runs WireGuard must be set")
	}
	for _, f := range c.Families {
		if err := f.validate(c.Address); err != nil {
			return err
		}
	}
	return nil
}

// family tells whether the cluster has addresses of an IP family.
func (c Config) family(table knftables.Family) bool {
	return slices.ContainsFunc(c.Families, func(f Family) bool { return f.Table() == table })
}

func (c Config) ipv6() bool { return c.family(knftables.IPv6Family) }

// Network is this peer's end of the pod network.
type Network struct {
	cfg   Config
	log   *slog.Logger
	ready chan struct{} // closed when what follows is set

	pool    *ipam.Pool
	ports   *hostports.Book
	tables  map[knftables.Family]*nft.Table
	guard   *nft.Guard   // of tables
	mtu     atomic.Int32 // of new pods
	sweep   chan struct{}
	changed chan struct{} // the backend has
	paths   *paths

	overlayMu  sync.Mutex
	overlay    *overlay.Overlay
	backend    string           // of overlay
	address    netip.Addr       // this peer's, as it was last set
	peers      []Peer           // as they were last set
	old        *overlay.Overlay // the one before, which still takes packets; nil: none
	oldBackend string

	// heard are the devices by which the backend direct, where it is in use or was lately, hears other
	// peers' pods; written under overlayMu.
	heard atomic.Pointer[[]string]

	podsMu      sync.Mutex // one writer of the pods section
	podsApplied uint64     // generation that is in the kernel, under podsMu
	// portsApplied are the host ports that are in the kernel, under podsMu; nil: not known yet.
	portsApplied map[string][]hostports.Port
	podsWanted   atomic.Uint64

	attaching keyedMutex
}

// New returns a network that does nothing until [Network.Run].
func New(cfg Config) (*Network, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Network{cfg: cfg.withDefaults(), address: cfg.Address, log: cfg.Log, ready: make(chan struct{}), sweep: make(chan struct{}, 1), changed: make(chan struct{}, 1), paths: newPaths(cfg.Log)}, nil
}

// Ready is closed when pods can be attached. It stays open if Run fails.
func (n *Network) Ready() <-chan struct{} { return n.ready }

// own are this peer's own addresses on the pod network, one of each family.
func (n *Network) own() (out []netip.Addr) {
	for _, f := range n.cfg.Families {
		out = append(out, f.Own())
	}
	return out
}

// Run sets the peer's devices, routes and rules up, adopting what is there, and
// keeps them until ctx ends. What can work without the daemon stays in the
// kernel after that. It may be called once.
func (n *Network) Run(ctx context.Context) error {
	if err := n.setup(ctx); err != nil {
		return fmt.Errorf("set up pod network: %w", errors.Join(err, n.close()))
	}
	close(n.ready)
	n.log.Info("pod network is up", "backend", n.cfg.Backend, "addresses", n.own(), "mtu", n.mtu.Load())
	var wait sync.WaitGroup
	wait.Go(func() { n.followPaths(ctx) })
	wait.Go(func() { n.guard.Run(ctx) })
	n.keep(ctx)
	wait.Wait()
	return n.close()
}

// sweepAfter is how long kernels before 6.2 may hold on to a chain that is not
// referred to any more; it takes them milliseconds.
const sweepAfter = time.Second

func (n *Network) keep(ctx context.Context) {
	var sweep, retire <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.sweep:
			if sweep == nil {
				sweep = time.After(sweepAfter)
			}
		case <-sweep:
			sweep = nil
			for _, t := range n.tables {
				if _, err := t.Sweep(ctx); err != nil && ctx.Err() == nil {
					n.log.Debug("unused chains are still held, trying again", "error", err)
					sweep = time.After(sweepAfter)
				}
			}
		case <-n.changed:
			retire = time.After(lingerFor)
		case <-retire:
			n.overlayMu.Lock()
			err := n.retire(ctx)
			n.overlayMu.Unlock()
			if err != nil {
				n.log.Warn("trying again", "error", err)
				retire = time.After(lingerFor)
			}
		}
	}
}

// Apply brings one section of the family's table of rules to state, as [nft.Table.Set];
// network/services and network/policy call it. It waits for Ready.
func (n *Network) Apply(ctx context.Context, family knftables.Family, section string, state nft.State) error {
	return n.write(ctx, family, func(t *nft.Table) error { return t.Set(ctx, section, state) })
}

// Patch changes a section that was applied, as [nft.Table.Patch]. After an error it is not known
// whether the section has the patch: it has to be applied anew.
func (n *Network) Patch(ctx context.Context, family knftables.Family, section string, patch nft.Patch) error {
	return n.write(ctx, family, func(t *nft.Table) error { return t.Patch(ctx, section, patch) })
}

func (n *Network) write(ctx context.Context, family knftables.Family, change func(*nft.Table) error) error {
	if err := n.wait(ctx); err != nil {
		return err
	}
	table, ok := n.tables[family]
	if !ok {
		return fmt.Errorf("the cluster has no addresses of family %s", family)
	}
	err := change(table)
	n.sweepSoon()
	return err
}

// sweepSoon has the chains deleted that a change of a table has emptied. It does not block.
func (n *Network) sweepSoon() {
	select {
	case n.sweep <- struct{}{}:
	default:
	}
}

// Addresses are those of this peer's pods, by UID, in the order of [Config.Families]: of
// all that have been attached or are about to be. The lists must not be changed. nil
// before Ready. It does not block.
func (n *Network) Addresses() map[string][]netip.Addr {
	select {
	case <-n.ready:
		return n.pool.All()
	default:
		return nil
	}
}

func (n *Network) wait(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the pod network: %w", context.Cause(ctx))
	}
}

// tableName is our table, one of each family; nothing outside is ever touched.
const tableName = "rookery"

func openTable(family knftables.Family, log *slog.Logger, sections ...string) (*nft.Table, error) {
	t, err := nft.Open(family, tableName, log, sections...)
	if err != nil {
		return nil, fmt.Errorf("use nftables: %w; install the package nftables, and run as root on a kernel with nf_tables", err)
	}
	return t, nil
}

func (n *Network) ipamPath() string { return filepath.Join(n.cfg.Dir, "ipam.json") }

func (n *Network) hostPortsPath() string { return filepath.Join(n.cfg.Dir, "hostports.json") }
