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
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Config is what an [Announcer] is made from; all fields are required.
type Config struct {
	Services coreinformers.ServiceInformer
	Slices   discoveryinformers.EndpointSliceInformer
	// Peers are the names of those that live as far as is known and may answer for Services,
	// this one among them if it may. It must not block.
	Peers func() []string
	// Changed gets a value whenever the answer of Peers changes.
	Changed <-chan struct{}
	// Ours tells whether an address is one that the cluster gives out.
	Ours    func(netip.Addr) bool
	Self    string     // this peer's name
	Address netip.Addr // this peer's, on the device to answer on
	Log     *slog.Logger
}

// Announcer answers for the addresses that are this peer's to answer for.
type Announcer struct {
	cfg   Config
	dirty chan struct{}
	mine  atomic.Pointer[map[netip.Addr]bool]
}

// New asks for the informers, which somebody else starts, and returns an announcer that
// does nothing until Run.
func New(cfg Config) *Announcer {
	cfg.Services.Informer()
	cfg.Slices.Informer()
	a := &Announcer{cfg: cfg, dirty: make(chan struct{}, 1)}
	a.mine.Store(&map[netip.Addr]bool{})
	return a
}

const (
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

// serve answers on the device that has this peer's address, as long as that works.
func (a *Announcer) serve(ctx context.Context) error {
	link, err := overlay.LinkOf(a.cfg.Address)
	if err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("device %s is down", link.Attrs().Name)
	}
	socket, err := openARP(link.Attrs().Index, link.Attrs().HardwareAddr)
	if err != nil {
		return fmt.Errorf("device %s: %w", link.Attrs().Name, err)
	}
	a.mine.Store(&map[netip.Addr]bool{}) // all is new to a new device
	ended := make(chan error, 1)
	go func() { ended <- socket.answer(func(addr netip.Addr) bool { return (*a.mine.Load())[addr] }) }()
	a.loop(ctx, socket, ended)
	if err := socket.close(); err != nil {
		return fmt.Errorf("close packet socket: %w", err)
	}
	return <-ended
}

func (a *Announcer) kick() {
	select {
	case a.dirty <- struct{}{}:
	default:
	}
}

func (a *Announcer) loop(ctx context.Context, socket *arp, ended chan error) {
	a.kick()
	var again <-chan time.Time
	left, pause := 0, between
	disputed := false
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-ended:
			ended <- err
			return
		case <-a.cfg.Changed:
			// Who was cut off has answered for everything meanwhile; so may somebody now.
			disputed = true
		case <-a.dirty:
		case <-again:
			left--
			a.announce(socket, *a.mine.Load())
			if again, pause = nil, 2*pause; left > 0 {
				again = time.After(pause)
			}
			continue
		}
		was := *a.mine.Load()
		mine, err := a.elect()
		if err != nil {
			a.cfg.Log.Error("addresses to announce are not known", "error", err)
			continue
		}
		a.mine.Store(&mine)
		for _, addr := range slices.SortedFunc(maps.Keys(mine), netip.Addr.Compare) {
			if !was[addr] {
				a.cfg.Log.Info("answering for an address", "address", addr)
				disputed = true
			}
		}
		for _, addr := range slices.SortedFunc(maps.Keys(was), netip.Addr.Compare) {
			if !mine[addr] {
				a.cfg.Log.Info("no longer answering for an address", "address", addr)
			}
		}
		if disputed && len(mine) > 0 {
			a.announce(socket, mine)
			left, pause = repeats, between
			again = time.After(pause)
		}
		disputed = false
	}
}

func (a *Announcer) announce(socket *arp, addrs map[netip.Addr]bool) {
	for addr := range addrs {
		if err := socket.announce(addr); err != nil {
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
				peers = a.cfg.Peers()
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

// addresses are the Service's that the cluster has given out.
func (a *Announcer) addresses(svc *corev1.Service) (out []netip.Addr) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if addr, err := netip.ParseAddr(in.IP); err == nil && addr.Is4() && a.cfg.Ours(addr) {
			out = append(out, addr)
		}
	}
	return out
}

// candidates are the peers that can answer for the Service: all that live, or those with
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
