// Package announce answers on the LAN for the addresses of LoadBalancer Services: for each
// address one peer does, chosen by all in the same way from who lives, so that nobody
// has to be asked ([owner]). Balancing what then arrives is package services' business, giving
// out the addresses that of the controllers. cmd/rookery runs an [Announcer].
//
// The address is on no device of the machine: what the machine itself listens on is not
// reached under it.
package announce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Config is what an [Announcer] is made from; all fields are required.
type Config struct {
	Services coreinformers.ServiceInformer
	Slices   discoveryinformers.EndpointSliceInformer
	// Peers are those that live as far as is known and may answer for Services, this one
	// among them if it may. It must not block.
	Peers func() []Peer
	// Changed gets a value whenever the answer of Peers changes.
	Changed <-chan struct{}
	// Families are those of the addresses that the cluster gives out.
	Families []knftables.Family
	// Ours tells whether an address is one that the cluster gives out.
	Ours func(netip.Addr) bool
	Self string // this peer's name
	// Address is this peer's, on the device to answer on. It must not block. It is asked
	// again whenever Changed has a value.
	Address func() netip.Addr
	Log     *slog.Logger
}

// Peer is one that may answer.
type Peer struct {
	Name      string
	Addresses []netip.Addr // of its machine, on the network between the machines
	Hidden    bool         // it cannot be dialled: it answers where no other on the segment can be dialled
}

// Announcer answers for the addresses that are this peer's to answer for.
type Announcer struct {
	cfg   Config
	dirty chan struct{}
	mine  atomic.Pointer[map[netip.Addr]bool]
}

// Addresses are those that this peer answers for now. It does not block.
func (a *Announcer) Addresses() []netip.Addr { return slices.Collect(maps.Keys(*a.mine.Load())) }

// New asks for the informers, which somebody else starts, and returns an announcer that
// does nothing until Run.
func New(cfg Config) *Announcer {
	cfg.Services.Informer()
	cfg.Slices.Informer()
	a := &Announcer{cfg: cfg, dirty: make(chan struct{}, 1)}
	a.mine.Store(&map[netip.Addr]bool{})
	return a
}

// responder makes the other machines on a device's segment send here what is for an address:
// by ARP for IPv4, by NDP for IPv6.
type responder interface {
	// listen prepares for questions for these addresses, and for no others.
	listen([]netip.Addr) error
	// answer reads questions, and answers those for addresses that mine knows, until close.
	// That the device was taken down is an error: if it was deleted, one that is made
	// again in its place is not the socket's.
	answer(mine func(netip.Addr) bool) error
	// announce tells everybody on the segment that the address is here.
	announce(netip.Addr) error
	close() error
}

// responders are those of a device, by family.
type responders map[knftables.Family]responder

func open(link netlink.Link, families []knftables.Family) (responders, error) {
	index, mac := link.Attrs().Index, link.Attrs().HardwareAddr
	all := responders{}
	for _, family := range families {
		var r responder
		var err error
		if family == knftables.IPv4Family {
			r, err = openARP(index, mac)
		} else {
			r, err = openNDP(index, mac)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("device %s: %w", link.Attrs().Name, err), all.close())
		}
		all[family] = r
	}
	return all, nil
}

func (all responders) close() error {
	var errs []error
	for _, r := range all {
		errs = append(errs, r.close())
	}
	return errors.Join(errs...)
}

const (
	// settle collects the burst that one change makes.
	settle = 10 * time.Millisecond
	// pace bounds how often the peers' addresses are computed while many things change. A
	// peer that dies is not waited for.
	pace = 200 * time.Millisecond
	// repeats is how often an address is announced that has come here or may be disputed;
	// one frame is lost easily.
	repeats = 4
	// between the first repeats; each later pause is twice as long.
	between = 100 * time.Millisecond
	// retry is the pause after the device could not be used: it may have gone for a moment.
	retry = 5 * time.Second
)

// Run answers until ctx ends.
func (a *Announcer) Run(ctx context.Context) error {
	kick := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { a.kick() }, UpdateFunc: func(_, _ any) { a.kick() }, DeleteFunc: func(any) { a.kick() }}
	var synced []cache.InformerSynced
	for _, informer := range []cache.SharedIndexInformer{a.cfg.Services.Informer(), a.cfg.Slices.Informer()} {
		handle, err := informer.AddEventHandler(kick)
		if err != nil {
			return fmt.Errorf("watch services: %w", err)
		}
		defer func() {
			if err := informer.RemoveEventHandler(handle); err != nil {
				a.cfg.Log.Warn("handler could not be removed", "error", err)
			}
		}()
		synced = append(synced, handle.HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	said := ""
	for ctx.Err() == nil {
		began := time.Now()
		err := a.serve(ctx)
		if errors.Is(err, errMoved) {
			continue
		}
		if err == nil || ctx.Err() != nil {
			break
		}
		// What fails for the same reason each time is said once, until it has worked for a while.
		if err.Error() != said || time.Since(began) > retry {
			said = err.Error()
			a.cfg.Log.Error("addresses of Services are not announced, trying again", "error", err, "pause", retry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
	return nil
}

// serve answers on the device that has this peer's address, as long as that works and it
// has that address.
func (a *Announcer) serve(ctx context.Context) error {
	address := a.cfg.Address()
	link, err := overlay.LinkOf(address)
	if err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("device %s is down", link.Attrs().Name)
	}
	sockets, err := open(link, a.cfg.Families)
	if err != nil {
		return err
	}
	a.mine.Store(&map[netip.Addr]bool{}) // all is new to a new device
	ended := make(chan error, len(sockets))
	for _, s := range sockets {
		go func() { ended <- s.answer(func(addr netip.Addr) bool { return (*a.mine.Load())[addr] }) }()
	}
	left := len(sockets)
	if err = a.loop(ctx, address, sockets, ended); err != nil && err != errMoved {
		left-- // whose error that is
	}
	if cerr := sockets.close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close packet socket: %w", cerr))
	}
	for range left {
		err = errors.Join(err, <-ended)
	}
	return err
}

func (a *Announcer) kick() {
	select {
	case a.dirty <- struct{}{}:
	default:
	}
}

// loop keeps what is answered for current until ctx ends, this peer's address is another one
// (errMoved), or a responder has ended, whose error it returns.
func (a *Announcer) loop(ctx context.Context, address netip.Addr, sockets responders, ended <-chan error) error {
	a.kick()
	var again, due <-chan time.Time
	var last time.Time
	left, pause := 0, between
	disputed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return cmp.Or(err, errEnded)
		case <-a.cfg.Changed:
			if a.cfg.Address() != address {
				return errMoved
			}
			// Who was cut off has answered for everything meanwhile; so may somebody now.
			disputed = true
		case <-a.dirty:
			if due == nil {
				due = time.After(max(settle, pace-time.Since(last)))
			}
			continue
		case <-due:
		case <-again:
			left--
			a.announce(sockets, *a.mine.Load())
			if again, pause = nil, 2*pause; left > 0 {
				again = time.After(pause)
			}
			continue
		}
		due, last = nil, time.Now()
		come, err := a.update(sockets)
		if err != nil {
			a.cfg.Log.Error("addresses to announce are not known", "error", err)
			continue
		}
		if mine := *a.mine.Load(); (come || disputed) && len(mine) > 0 {
			a.announce(sockets, mine)
			left, pause = repeats, between
			again = time.After(pause)
		}
		disputed = false
	}
}

// errMoved: the device to answer on has to be looked for anew.
var errMoved = errors.New("this peer has another address")

// errEnded cannot be: a responder ends without an error only when it is closed.
var errEnded = errors.New("answering has ended")

// update elects anew, and tells whether an address has come to this peer.
func (a *Announcer) update(sockets responders) (come bool, err error) {
	was := *a.mine.Load()
	mine, err := a.elect()
	if err != nil {
		return false, err
	}
	addrs := slices.SortedFunc(maps.Keys(mine), netip.Addr.Compare)
	for family, s := range sockets {
		of := slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool { return nft.FamilyOf(addr) != family })
		if err := s.listen(of); err != nil {
			a.cfg.Log.Error("not every question for an address is heard", "family", family, "error", err)
		}
	}
	a.mine.Store(&mine)
	for _, addr := range addrs {
		if !was[addr] {
			a.cfg.Log.Info("answering for an address", "address", addr)
			come = true
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(was), netip.Addr.Compare) {
		if !mine[addr] {
			a.cfg.Log.Info("no longer answering for an address", "address", addr)
		}
	}
	return come, nil
}

func (a *Announcer) announce(sockets responders, addrs map[netip.Addr]bool) {
	for addr := range addrs {
		if err := sockets[nft.FamilyOf(addr)].announce(addr); err != nil {
			a.cfg.Log.Warn("address could not be announced", "address", addr, "error", err)
		}
	}
}

// elect returns the addresses that are this peer's to answer for.
func (a *Announcer) elect() (map[netip.Addr]bool, error) {
	services, err := a.cfg.Services.Lister().List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	mine := map[netip.Addr]bool{}
	var peers []string
	for _, svc := range services {
		for _, addr := range a.addresses(svc) {
			if peers == nil {
				if peers, err = a.neighbours(); err != nil {
					return nil, err
				}
			}
			candidates, err := a.candidates(svc, peers)
			if err != nil {
				return nil, err
			}
			if owner(addr, candidates) == a.cfg.Self {
				mine[addr] = true
			}
		}
	}
	return mine, nil
}

// neighbours are the peers that can answer on this one's segment. Those behind a router are not
// heard there: an address of theirs would be lost to everybody here.
func (a *Announcer) neighbours() ([]string, error) {
	address := a.cfg.Address()
	link, err := overlay.LinkOf(address)
	if err != nil {
		return nil, err
	}
	segment, err := overlay.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of device %s: %w", link.Attrs().Name, err)
	}
	near := func(addr netip.Addr) bool {
		return slices.ContainsFunc(segment, func(s netlink.Addr) bool { return s.Scope == unix.RT_SCOPE_UNIVERSE && s.Contains(addr.AsSlice()) })
	}
	dialled, hidden := []string{}, []string{}
	for _, p := range a.cfg.Peers() {
		switch {
		case p.Name != a.cfg.Self && !slices.ContainsFunc(p.Addresses, near):
		case p.Hidden:
			hidden = append(hidden, p.Name)
		default:
			dialled = append(dialled, p.Name)
		}
	}
	if len(dialled) == 0 {
		return hidden, nil
	}
	return dialled, nil
}

// addresses are the Service's that the cluster has given out.
func (a *Announcer) addresses(svc *corev1.Service) (out []netip.Addr) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if addr, err := netip.ParseAddr(in.IP); err == nil && slices.Contains(a.cfg.Families, nft.FamilyOf(addr)) && a.cfg.Ours(addr) {
			out = append(out, addr)
		}
	}
	return out
}

// candidates are those of the peers that can answer for the Service: all, or those with
// an endpoint where the traffic has to stay on the peer that it comes to.
func (a *Announcer) candidates(svc *corev1.Service, peers []string) ([]string, error) {
	if svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return peers, nil
	}
	of, err := a.cfg.Slices.Lister().EndpointSlices(svc.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: svc.Name}))
	if err != nil {
		return nil, fmt.Errorf("list endpoint slices: %w", err)
	}
	ready, serving := map[string]bool{}, map[string]bool{}
	for _, slice := range of {
		for _, e := range slice.Endpoints {
			if e.NodeName == nil {
				continue
			}
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready[*e.NodeName] = true
			} else if e.Conditions.Serving != nil && *e.Conditions.Serving {
				serving[*e.NodeName] = true
			}
		}
	}
	for _, with := range []map[string]bool{ready, serving} {
		if out := slices.DeleteFunc(slices.Clone(peers), func(p string) bool { return !with[p] }); len(out) > 0 {
			return out, nil
		}
	}
	return nil, nil
}

// owner is the candidate that answers for an address, by rendezvous hashing (Thaler and
// Ravishankar, 1998): if a peer goes, only its own addresses move, and they are spread.
// "" without candidates.
func owner(addr netip.Addr, candidates []string) string {
	if len(candidates) == 0 {
		return ""
	}
	return slices.MaxFunc(candidates, func(a, b string) int {
		return cmp.Or(cmp.Compare(score(addr, a), score(addr, b)), cmp.Compare(a, b))
	})
}

func score(addr netip.Addr, peer string) uint64 {
	h := fnv.New64a()
	h.Write(addr.AsSlice())
	h.Write([]byte(peer))
	x := h.Sum64() // FNV alone tells names that differ at their end badly apart; this is splitmix64's end
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
