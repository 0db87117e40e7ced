package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/apiserver/aggregation"
	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/dnsserver"
	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/policy"
	"github.com/rundigitalplatform/rookery/network/refused"
	"github.com/rundigitalplatform/rookery/network/services"
	"github.com/rundigitalplatform/rookery/node"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/runtime/podman"
)

// peer is one running peer: every room, composed. The ground floor (port,
// gossip, store) starts first and ends last, because all others speak through it.
type peer struct {
	cfg  config
	id   *identity.Identity
	log  *slog.Logger
	addr netip.Addr

	port     *cluster.Port
	members  *cluster.Members
	keepers  *cluster.Keepers
	live     *liveness
	store    *raftstore.Replicated
	registry *cluster.Registry
	tokens   *cluster.Tokens
	api      *apiserver.Server
	engine   *podman.Runtime
	storage  *storage
	agent    *node.Agent
	network  *meteredNetwork
	routed   atomic.Pointer[map[string]bool] // whether packets have a route to the other peers; nil: not known yet
	unrouted atomic.Pointer[string]          // why packets to other peers do not go as wanted; nil: they do
	policies *policy.Controller
	started  time.Time
}

// newPeer composes the ground floor and the API; it opens the peer port. What
// needs this peer's share of the pod network is made by run, which waits for it.
func newPeer(cfg config, id *identity.Identity, engine *storage, addr netip.Addr, log *slog.Logger) (*peer, error) {
	p := &peer{cfg: cfg, id: id, engine: engine.podman, storage: engine, addr: addr, log: log, started: time.Now()}
	settings := id.Settings()
	var err error
	// The store reaches peers through the port, the port finds them through
	// gossip, gossip knows them from the store's records: functions, called once all are there.
	p.port, err = cluster.Listen(cluster.PortConfig{
		Listen: fmt.Sprintf(":%d", cfg.Port), Identity: id, Log: log.With("room", "cluster"),
		Allowed: func(name, fp string) bool { return p.registry.Allowed(name, fp) },
		Resolve: func(name string) []string { return p.members.Resolve(name) },
		Changed: func() { p.members.Changed() },
	})
	if err != nil {
		return nil, err
	}
	p.store, err = raftstore.New(raftstore.Config{
		Name: id.Name(), Dir: filepath.Join(cfg.DataDir, "raft"), Transport: p.port, Logger: log.With("room", "raftstore"),
		Alive:     func(name string) bool { return p.live.alive(name) },
		Subscribe: func() <-chan struct{} { return p.live.subscribe() },
	})
	if err != nil {
		return nil, err
	}
	p.registry = cluster.NewRegistry(p.store, settings)
	p.tokens = cluster.NewTokens(p.store, id.Pin())
	advertise := cluster.Advertiser(addr, settings.Networks())
	if cfg.AdvertiseAddress != "" {
		advertise = cluster.FixedAddress(addr)
	}
	p.members, err = cluster.NewMembers(cluster.MembersConfig{
		Name: id.Name(), Fingerprint: id.Fingerprint(), Key: id.GossipKey(), Dir: cfg.DataDir,
		Bind: netip.AddrPortFrom(netip.IPv4Unspecified(), cfg.GossipPort), Advertise: advertise, Other: p.otherAddress,
		Port: cfg.Port, Version: version, WireGuardKey: id.WireGuardKey().PublicKey().String(), WireGuardPort: cfg.WireGuardPort,
		Links: p.port, Allowed: p.registry.Allowed, Recorded: p.registry.Peers,
		Applied: func() uint64 { return p.store.Status().Applied },
		Log:     log.With("room", "cluster"),
	})
	if err != nil {
		return nil, err
	}
	p.keepers = cluster.NewKeepers(p.port, p.members, log.With("room", "cluster"))
	p.live = newLiveness(id.Name(), p.members)
	first, count, err := cfg.nodePorts()
	if err != nil {
		return nil, err
	}
	legacyregistry.Registerer().MustRegister(newPeerMetrics(p.observe))
	audit, err := cfg.audit()
	if err != nil {
		return nil, err
	}
	oidc, err := cfg.OIDC.load()
	if err != nil {
		return nil, err
	}
	p.api, err = apiserver.New(apiserver.Config{
		Store: p.store, Logger: log.With("room", "apiserver"), ClientCAs: id.Pool(), Revoked: p.removed, TokenKey: id.ServiceAccountKey(),
		ServiceCIDRs: serviceCIDRs(settings), NodePorts: apiserver.PortRange{First: first, Last: first + count - 1}, APIPort: int(cfg.Port),
		TolerationSeconds: int64(cfg.EvictAfter.Seconds()), Kubelet: p.agentOf, Alive: p.live.alive, Components: p.components(), Audit: audit, OIDC: oidc,
		FrontProxy: p.frontProxy,
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func serviceCIDRs(made identity.Settings) (all []netip.Prefix) {
	for _, r := range made.Ranges() {
		all = append(all, r.ServiceCIDR)
	}
	return all
}

// frontProxy is what this peer's API shows to extension servers.
func (p *peer) frontProxy() (aggregation.FrontProxy, error) {
	ca, cert, key, err := p.id.FrontProxy()
	return aggregation.FrontProxy{CA: ca, Cert: cert, Key: key, Name: identity.FrontProxyName, ClientCA: p.id.CAPEM()}, err
}

// removed tells whether a certificate is of a peer that was taken out of the cluster.
func (p *peer) removed(cert *x509.Certificate) bool {
	return !p.registry.Allowed(cert.Subject.CommonName, identity.Fingerprint(cert))
}

// run is the life of a peer. It returns when ctx ends, or when something that
// it cannot do without fails. Containers live on.
func (p *peer) run(ctx context.Context, ready func()) error {
	ground, endGround := context.WithCancel(context.WithoutCancel(ctx))
	defer endGround()
	lower, ground := errgroup.WithContext(ground)
	start(lower, ground, map[string]func(context.Context) error{
		"peer port": p.port.Run, "gossip": p.members.Run, "kept connections": p.keepers.Run, "store": p.store.Run, "liveness": p.live.run, "memory": tidyMemory,
	})
	upperCtx, endUpper := context.WithCancel(ctx)
	defer endUpper()
	go func() { <-ground.Done(); endUpper() }() // without a ground floor nothing stands

	upper, upperCtx := errgroup.WithContext(upperCtx)
	upper.Go(func() error { return p.runUpper(upperCtx, upper, ready) })
	err := upper.Wait()
	// The API's last writes are done; only now may leadership, gossip and the port go.
	endGround()
	return errors.Join(err, lower.Wait())
}

// start runs parts under a group; what ends before it was told to takes the rest down.
func start(g *errgroup.Group, ctx context.Context, parts map[string]func(context.Context) error) {
	for name, run := range parts {
		g.Go(func() error {
			err := run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if ctx.Err() == nil {
				return fmt.Errorf("%s ended by itself", name)
			}
			return nil
		})
	}
}

func (p *peer) runUpper(ctx context.Context, g *errgroup.Group, ready func()) error {
	select {
	case <-p.store.Started():
	case <-ctx.Done():
		return nil
	}
	wake, cancel := p.members.Subscribe()
	defer cancel()
	start(g, ctx, map[string]func(context.Context) error{
		"announce":   func(ctx context.Context) error { return p.registry.Announce(ctx, p.self, wake, p.log) },
		"leadership": func(ctx context.Context) error { return p.store.RunWhileLeader(ctx, p.lead) },
	})
	self, err := p.record(ctx)
	if err != nil {
		return err
	}
	if err := p.compose(self); err != nil {
		return err
	}
	start(g, ctx, map[string]func(context.Context) error{"packets": p.network.Run})
	select { // pods need their network, and the API's first clients are on this machine
	case <-p.network.Ready():
	case <-ctx.Done():
		return nil
	}
	kube, err := dnsserver.NewKube(p.api.Informers())
	if err != nil {
		return err
	}
	dns, err := p.dns(kube)
	if err != nil {
		return err
	}
	proxy, err := p.ingress(kube.Slices)
	if err != nil {
		return err
	}
	balancer, refusals := p.balancer(), p.refusals()
	legacyregistry.Registerer().MustRegister(p.policies, refusals)
	pool, err := p.cfg.balancerAddresses()
	if err != nil {
		return err
	}
	if len(pool) > 0 {
		start(g, ctx, map[string]func(context.Context) error{"announcements": p.announcer(pool).Run})
	}
	start(g, ctx, map[string]func(context.Context) error{
		"api": p.api.Run, "http": p.serve, "routes": p.runRoutes, "services": balancer.Run, "policies": p.policies.Run, "refusals": refusals.Run, "dns": dns.Run, "ingress": proxy.Run, "agent": p.agent.Run, "logind": p.watchShutdown,
	})
	for p.api.Ready() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
	ready()
	<-ctx.Done()
	return nil
}

// self is this peer's record as it should be.
func (p *peer) self() cluster.Peer {
	addr, other := p.members.Address(), p.members.OtherAddress()
	if !addr.IsValid() {
		addr = p.addr
		var err error
		if other, err = p.otherAddress(addr, netip.Addr{}); err != nil {
			p.log.Warn("this machine's address of the other IP family is not known", "error", err)
			other = p.recordedOther()
		}
	}
	return cluster.Peer{
		Name: p.id.Name(), Address: addr, OtherAddress: other, Port: p.cfg.Port, GossipPort: p.cfg.GossipPort,
		WireGuardKey: p.id.WireGuardKey().PublicKey().String(), Fingerprint: p.id.Fingerprint(), Version: version,
	}
}

// otherAddress is this machine's of the cluster's other IP family; zero if the cluster has
// none but that of addr, or this machine has none. The current one stays, after a restart
// that of the record.
func (p *peer) otherAddress(addr, current netip.Addr) (netip.Addr, error) {
	if !current.IsValid() {
		current = p.recordedOther()
	}
	settings := p.id.Settings()
	for _, r := range settings.Ranges() {
		if r.PodCIDR.Addr().Is4() == addr.Is4() {
			continue
		}
		return cluster.OtherAddress(addr, current, settings.Networks())
	}
	return netip.Addr{}, nil
}

// recordedOther is the address of the other IP family in this peer's record; zero if it has
// none, or there is no record yet.
func (p *peer) recordedOther() netip.Addr {
	record, err := p.registry.Peer(p.id.Name())
	if err != nil {
		return netip.Addr{}
	}
	return record.OtherAddress
}

// machineAddresses are a peer's, of the cluster's first IP family before the other.
func machineAddresses(r cluster.Peer, made identity.Settings) []netip.Addr {
	switch first, other := r.Address, r.OtherAddress; {
	case !other.IsValid() || other.Is4() == first.Is4(): // a moment after the first has become another one
		return []netip.Addr{first}
	case other.Is4() == made.PodCIDR.Addr().Is4():
		return []netip.Addr{other, first}
	default:
		return []netip.Addr{first, other}
	}
}

func nodeAddresses(self cluster.Peer, made identity.Settings) (all []corev1.NodeAddress) {
	for _, a := range machineAddresses(self, made) {
		all = append(all, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return append(all, corev1.NodeAddress{Type: corev1.NodeHostName, Address: self.Name})
}

// record waits until this peer's record, with its share of the pod network, is
// in the local state: at once after a restart, also without quorum.
func (p *peer) record(ctx context.Context) (cluster.Peer, error) {
	w, err := p.store.Watch(cluster.PeersPrefix, p.store.Revision())
	if err != nil {
		return cluster.Peer{}, fmt.Errorf("watch peer records: %w", err)
	}
	defer func() { w.Close() }()
	for told := false; ; told = true {
		rec, err := p.registry.Peer(p.id.Name())
		if err == nil || !errors.Is(err, cluster.ErrNoPeer) {
			return rec, err
		}
		if !told {
			p.log.Info("waiting for this peer's record to arrive from the cluster")
		}
		if _, err := w.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return cluster.Peer{}, ctx.Err()
			}
			// The history was replaced, as by a snapshot from the leader: look again from there.
			w.Close()
			if w, err = p.store.Watch(cluster.PeersPrefix, p.store.Revision()); err != nil {
				return cluster.Peer{}, fmt.Errorf("watch peer records: %w", err)
			}
		}
	}
}

// compose makes what needs this peer's share of the pod network.
func (p *peer) compose(self cluster.Peer) error {
	settings := p.id.Settings()
	packets, err := network.New(network.Config{
		Admission: admission{p},
		Address:   p.self().Address, Families: families(settings, self.PodCIDR),
		Backend: p.registry.Backend(), Key: network.Key(p.id.WireGuardKey()), Port: int(p.cfg.WireGuardPort),
		Reserved: map[string]uint16{"the API and the other peers": uint16(p.cfg.Port), "gossip": uint16(p.cfg.GossipPort), "the pod network": uint16(p.cfg.WireGuardPort)},
		Dir:      filepath.Join(p.cfg.DataDir, "network"), Log: p.log.With("room", "network"),
		WireGuard: []string{"/proc/self/exe", wireGuardVerb}, Began: p.members.SetWireGuardStarted,
	})
	if err != nil {
		return err
	}
	p.network = newMeteredNetwork(packets)
	legacyregistry.Registerer().MustRegister(p.network)
	inf := p.api.Informers()
	p.policies = policy.New(policy.Config{
		Policies: inf.Networking().V1().NetworkPolicies(), Pods: inf.Core().V1().Pods(), Namespaces: inf.Core().V1().Namespaces(),
		Network: p.network, Section: network.PoliciesSection, Families: policySelves(self.Name, settings), Log: p.log.With("room", "network"),
	})
	client, err := kubernetes.NewForConfig(p.api.ClientConfig(identity.PeerUserPrefix+self.Name, identity.PeerOrganization, "system:authenticated"))
	if err != nil {
		return err
	}
	resources, err := p.cfg.Resources.load()
	if err != nil {
		return err
	}
	p.agent, err = node.New(node.Config{
		Name: self.Name, Dir: filepath.Join(p.cfg.DataDir, "pods"), Client: client, Informers: p.api.Informers(),
		Runtime: p.engine, Storage: p.storage, Network: p.network, ClusterDNS: settings.DNS, ClusterDomain: settings.Domain,
		NodeAddresses: func() []corev1.NodeAddress { return nodeAddresses(p.self(), settings) }, PodCIDRs: settings.PeerCIDRs(self.PodCIDR), Labels: p.cfg.Labels, Version: kubernetesVersion(), Port: int32(p.cfg.Port), Images: p.cfg.Images.Policy,
		MaxPods: p.cfg.Resources.MaxPods, Resources: resources,
		Host:   spec.ThisHost(p.cfg.UnsafeSysctls),
		Logger: p.log.With("room", "node"),
	})
	return err
}

// families are the cluster's ranges with this peer's share of each, from its first one.
func families(settings identity.Settings, first netip.Prefix) (out []network.Family) {
	shares := settings.PeerCIDRs(first)
	for i, r := range settings.Ranges() {
		out = append(out, network.Family{PodCIDR: shares[i], ClusterCIDR: r.PodCIDR, ServiceCIDR: r.ServiceCIDR, DNS: r.DNS})
	}
	return out
}

// refusals tells what pods of this peer were not allowed to send or to get.
func (p *peer) refusals() *refused.Watcher {
	cfg := refused.Config{Counts: network.Counts, Device: network.Device, Pods: p.api.Informers().Core().V1().Pods().Lister(), Log: p.log.With("room", "network")}
	for _, r := range p.id.Settings().Ranges() {
		cfg.Families = append(cfg.Families, nft.FamilyOf(r.PodCIDR.Addr()))
	}
	return refused.New(cfg)
}

// policySelves are what the rules of NetworkPolicies know of the peer, by IP family.
func policySelves(name string, settings identity.Settings) (out []policy.Self) {
	for _, r := range settings.Ranges() {
		out = append(out, policy.Self{Node: name, DNS: r.DNS})
	}
	return out
}

// admission holds pods back until their policies are in the rules; the policies are made
// after the network that asks for them.
type admission struct{ *peer }

func (a admission) Admit(ctx context.Context) error { return a.policies.Admit(ctx) }

func (p *peer) balancer() *services.Controller {
	inf := p.api.Informers()
	changed := p.live.subscribe()
	return services.New(services.Config{
		Services: inf.Core().V1().Services(), Slices: inf.Discovery().V1().EndpointSlices(),
		Alive: p.reached, Changed: changed, Zone: p.zone, Rules: p.network, Section: network.ServicesSection,
		Families: p.balancerSelves(),
		Log:      p.log.With("room", "network"),
	})
}

// zone is where this peer's Node is, by its label; "" if it does not say.
func (p *peer) zone() string {
	node, err := p.api.Informers().Core().V1().Nodes().Lister().Get(p.id.Name())
	if err != nil {
		return "" // not there yet
	}
	return node.Labels[corev1.LabelTopologyZone]
}

// agentOf tells the API how to reach the agent of a node. Upgraded connections
// (exec, port-forward) are dialled by hand, so the transport has a plain dialler
// and a TLS configuration instead of a dialler that does both.
func (p *peer) agentOf(_ context.Context, name string) (*url.URL, http.RoundTripper, error) {
	at := p.members.Resolve(name)
	if len(at) == 0 {
		return nil, nil, fmt.Errorf("no address of peer %s is known", name)
	}
	return &url.URL{Scheme: "https", Host: at[0]}, p.transport(name), nil
}

func (p *peer) transport(name string) *http.Transport {
	tls := p.port.TLSConfig(name).Clone()
	tls.NextProtos = []string{"http/1.1"}
	return &http.Transport{
		TLSClientConfig:   tls,
		DisableKeepAlives: true, // each request is a stream of its own; nothing is left to close
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return p.port.DialPlain(ctx, name)
		},
	}
}
