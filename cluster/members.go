package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// MembersConfig is what [Members] needs.
type MembersConfig struct {
	Name        string
	Fingerprint string // of our key
	Key         []byte // 32 bytes, the gossip key
	Dir         string // data directory, for peers.json
	Bind        netip.AddrPort
	// Advertise returns the address at which others reach this machine now. It is asked
	// every two seconds; see [Advertiser].
	Advertise func(current netip.Addr, towards []netip.AddrPort) (netip.Addr, error)
	// Other returns the machine's address of the other IP family than the advertised one, zero
	// if it has none; current is what it returned last. It is asked as often, and an error
	// changes nothing; see [OtherAddress]. nil: nobody wants to know.
	Other func(advertised, current netip.Addr) (netip.Addr, error)

	Port          uint16 // our TLS peer port
	Version       string
	Witness       bool
	WireGuardKey  string // public
	WireGuardPort uint16

	// Links leads to peers that cannot be dialled; nil: there are none.
	Links *Port
	// Allowed as in [PortConfig]; nil: all.
	Allowed func(name, fingerprint string) bool
	// Recorded returns the peer records, to look for those that are not alive; nil: peers.json only.
	Recorded func() ([]Peer, error)
	// Applied returns our applied Raft index, which others see as Member.Index; may be nil.
	Applied func() uint64
	Log     *slog.Logger
}

// Members is the gossip of one peer: who is here, and where. Any method may be
// called at any time, also before and after [Members.Run].
type Members struct {
	cfg     MembersConfig
	table   *memberTable
	started time.Time
	rejoin  *rejoiner
	// transport is newTransport but in tests that cut cables.
	transport func() (memberlist.Transport, error)

	mu      sync.Mutex
	list    *memberlist.Memberlist // nil unless Run is in it
	way     *transport             // that of list
	address netip.Addr             // advertised
	other   netip.Addr             // of the other IP family
	hidden  bool
	// wgStarted is in nanoseconds of Unix time, 0: not known.
	wgStarted int64
	leaving   bool
}

// NewMembers reads peers.json and opens no socket.
func NewMembers(cfg MembersConfig) (*Members, error) {
	if len(cfg.Key) != 32 {
		return nil, fmt.Errorf("gossip key has %d bytes, not 32", len(cfg.Key))
	}
	if len(cfg.Version) > maxVersion {
		cfg.Version = cfg.Version[:maxVersion]
	}
	if !cfg.Bind.IsValid() {
		cfg.Bind = netip.AddrPortFrom(netip.IPv4Unspecified(), DefaultGossipPort)
	}
	m := &Members{cfg: cfg, table: newMemberTable(cfg.Name), started: time.Now()}
	m.transport = func() (memberlist.Transport, error) {
		if cfg.Links == nil {
			return newTransport(cfg.Bind, nil, cfg.Log)
		}
		return newTransport(cfg.Bind, cfg.Links, cfg.Log)
	}
	m.rejoin = newRejoiner(m)
	ks, err := loadKnown(cfg.Dir)
	if err != nil {
		cfg.Log.Error("known peers are not readable; they are learnt again", "error", err)
	}
	for _, k := range ks {
		m.learn(k)
	}
	return m, nil
}

func (m *Members) learn(k known) {
	gossip, err := netip.ParseAddrPort(k.Gossip)
	if err != nil {
		m.cfg.Log.Warn("known peer has no usable address", "peer", k.Name, "gossip", k.Gossip, "error", err)
		return
	}
	api, err := netip.ParseAddrPort(k.API)
	if err != nil {
		m.cfg.Log.Warn("known peer has no usable address", "peer", k.Name, "api", k.API, "error", err)
		return
	}
	m.table.learn(k.Name, k.Key, api, gossip)
}

// Run gossips until ctx ends. It does not say goodbye: containers outlive the
// daemon, so a restart must not look like leaving; see [Members.Leave].
// It returns an error when the port cannot be had at the start.
func (m *Members) Run(ctx context.Context) error {
	addr, err := m.advertise()
	if err != nil {
		return err
	}
	m.lookForOther(addr)
	if err := m.open(addr); err != nil {
		return err
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	wg.Go(func() { m.rejoin.run(ctx) })
	wg.Go(func() { m.persist(ctx) })
	err = m.watchAddress(ctx)
	cancel()
	wg.Wait()
	return errors.Join(err, m.close())
}

func (m *Members) open(addr netip.Addr) error {
	conf := m.gossipConfig(addr)
	tr, err := m.transport()
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("gossip port %s is in use by another program: stop it (see `ss -lnp`), or choose another port: %w", m.cfg.Bind, err)
	}
	if err != nil {
		return err
	}
	conf.Transport = tr
	m.mu.Lock()
	m.address = addr
	m.mu.Unlock()
	// Create tells the delegates of ourselves, so no lock of ours is held.
	list, err := memberlist.Create(conf)
	if err != nil {
		return fmt.Errorf("start gossip: %w", errors.Join(err, tr.Shutdown()))
	}
	m.mu.Lock()
	m.list = list
	m.way, _ = tr.(*transport) // tests have others
	m.mu.Unlock()
	m.Changed() // setHidden waits for it
	return nil
}

func (m *Members) close() error {
	m.mu.Lock()
	list := m.list
	m.list, m.way = nil, nil
	m.mu.Unlock()
	if list == nil {
		return nil
	}
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

func (m *Members) current() *memberlist.Memberlist {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list
}

// receive hands gossip a datagram that came by another way than UDP; it is lost while
// gossip does not run.
func (m *Members) receive(packet []byte, from net.Addr) {
	if t := m.currentWay(); t != nil {
		t.packet(packet, from)
	}
}

// accept hands gossip a connection that came by another way than its port.
func (m *Members) accept(conn net.Conn) {
	if t := m.currentWay(); t != nil {
		t.stream(conn)
		return
	}
	conn.Close()
}

func (m *Members) currentWay() *transport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.way
}

// setHidden tells the others whether most of them cannot dial this peer. While gossip does not run
// it does nothing; it is called at each change.
func (m *Members) setHidden(hidden bool) {
	m.mu.Lock()
	list := m.list
	if list == nil || m.hidden == hidden {
		m.mu.Unlock()
		return
	}
	m.hidden = hidden
	m.mu.Unlock()
	m.tell(list)
}

// SetWireGuardStarted tells the others when this machine's WireGuard started, if that is a
// process. It does not wait until they have heard.
func (m *Members) SetWireGuardStarted(at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wgStarted = at.UnixNano()
	if m.list != nil {
		go m.tell(m.list)
	}
}

// tell sends the others our meta anew.
func (m *Members) tell(list *memberlist.Memberlist) {
	for before := m.meta(); ; {
		if err := list.UpdateNode(streamTimeout); err != nil {
			m.cfg.Log.Debug("not all peers have heard yet what is new of this one", "error", err)
		}
		now := m.meta()
		if now == before {
			return
		}
		before = now // two that tell at once may have crossed, and the older news be the last
	}
}

// Changed wakes who subscribes, for what is told beside [Members.Snapshot].
func (m *Members) Changed() { m.table.changed() }

// Leave tells the others that this peer goes on purpose; they see it as left at
// once instead of dead in two seconds. Call it before Run's context ends, when
// the machine is shut down. It blocks for at most timeout.
func (m *Members) Leave(timeout time.Duration) error {
	list := m.current()
	if list == nil {
		return nil
	}
	m.mu.Lock()
	m.leaving = true
	m.mu.Unlock()
	if err := list.UpdateNode(timeout / 2); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	if err := list.Leave(timeout / 2); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

func (m *Members) meta() meta {
	m.mu.Lock()
	defer m.mu.Unlock()
	return meta{V: metaVersion, Port: m.cfg.Port, Version: m.cfg.Version, Witness: m.cfg.Witness, Leaving: m.leaving, Hidden: m.hidden,
		WGPort: m.cfg.WireGuardPort, WGKey: m.cfg.WireGuardKey, Key: m.cfg.Fingerprint, Started: m.started.Unix(), WGStarted: m.wgStarted}
}

// Snapshot returns every peer that was ever met or is known from disk or the
// records, this one included, by ascending name.
func (m *Members) Snapshot() []Member { return m.table.snapshot(probeInterval, time.Now()) }

// Subscribe returns a channel that has a wake-up whenever [Members.Snapshot] may
// have changed (not for round trips and suspicion); wake-ups that nobody took
// are one. It holds one from the start. Call cancel when done.
func (m *Members) Subscribe() (wake <-chan struct{}, cancel func()) { return m.table.subscribe() }

// Member returns one peer; false if it is not known.
func (m *Members) Member(name string) (Member, bool) {
	for _, x := range m.Snapshot() {
		if x.Name == name {
			return x, true
		}
	}
	return Member{}, false
}

// Address is the one that we advertise; not valid before Run.
func (m *Members) Address() netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.address
}

// OtherAddress is this machine's of the other IP family than Address; zero if it has none,
// nobody wanted to know, or before Run. A change of it is one of [Members.Snapshot] to those who subscribe.
func (m *Members) OtherAddress() netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.other
}

// Resolve returns where the peer's TLS port is, for [PortConfig]: what gossip
// says, then what the record says if that differs.
func (m *Members) Resolve(name string) []string {
	var addrs []string
	if x, ok := m.table.get(name); ok && x.APIAddr() != "" {
		addrs = append(addrs, x.APIAddr())
	}
	for _, p := range m.recorded() {
		if p.Name == name && !slices.Contains(addrs, p.APIAddr()) {
			addrs = append(addrs, p.APIAddr())
		}
	}
	return addrs
}

func (m *Members) recorded() []Peer {
	if m.cfg.Recorded == nil {
		return nil
	}
	peers, err := m.cfg.Recorded()
	if err != nil {
		m.cfg.Log.Warn("peer records are not readable", "error", err)
	}
	return peers
}
