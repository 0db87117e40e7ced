package userwg

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// greeter begins WireGuard's handshakes with peers before there is anything to send,
// and repeats soon those that come to nothing.
//
// WireGuard itself repeats one after 5 s (RekeyTimeout), and in a cluster that is the rule at
// first contact: initiations that cross destroy each other, because each end gives its
// own up for the other's, and what is sent to a daemon that does not know this peer yet is
// lost. And who has restarted knows nothing of the session that the others go on sending
// into for 15 s.
//
// So that greetings do not cross in turn, the peer with the lesser public key speaks first.
// After the last try the rest is left to WireGuard. The methods may be called
// concurrently, and but for close do not block for long.
type greeter struct {
	dev *device.Device
	own wgtypes.Key // public
	log *slog.Logger
	// end ends what runs, which ctx is of.
	ctx     context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex // not held while the device is asked
	peers map[wgtypes.Key]*greeting
	// awaited are endpoints of which somebody waits for the next packet that is sent there.
	awaited  map[string]chan struct{}
	awaiting atomic.Int32 // how many they are
}

// greeting is how far the greeter is with one peer.
type greeting struct {
	end  context.CancelFunc // of what is under way; nil: nothing is
	vain time.Time          // when the last tries ended without a session
	had  time.Time          // before those, when the session of then was agreed; zero: there was none
}

const (
	// firstWord is how long the peer with the greater key leaves the word to the other:
	// a handshake on a LAN, between busy machines.
	firstWord = 100 * time.Millisecond
	// firstPause is before a handshake is repeated, twice that before the next time and so
	// on, so that an answer from far away is there before the next try makes it void.
	firstPause = 200 * time.Millisecond
	// answered is how long a peer whose handshake was answered has to go on with it. It repeats its
	// own meanwhile, and from very far away each makes the one before void.
	answered = 2 * device.RekeyTimeout
	// maxTries take 6 to 11 s. WireGuard's own follow, every 5 s for 90 s.
	maxTries = 6
	// proof is how long a packet may take from here to the socket, on a machine that does much else.
	proof = 250 * time.Millisecond
	// vainFor is how long tries in vain are not begun again: longer than WireGuard's last.
	vainFor = 2 * time.Minute
)

// newGreeter makes a WireGuard device without peers, of a private key, and its greeter.
// The caller closes the greeter.
func newGreeter(t tun.Device, b conn.Bind, key wgtypes.Key, log *slog.Logger) (*greeter, error) {
	g := &greeter{own: key.PublicKey(), log: log, peers: map[wgtypes.Key]*greeting{}, awaited: map[string]chan struct{}{}}
	g.ctx, g.end = context.WithCancel(context.Background())
	g.dev = device.NewDevice(t, overheard{b, g}, &device.Logger{
		Verbosef: func(string, ...any) {}, // a line for each packet of a handshake
		Errorf: func(format string, args ...any) {
			log.Debug("wireguard", "message", fmt.Sprintf(format, args...))
		},
	})
	if err := g.dev.IpcSet(fmt.Sprintf("private_key=%s\n", hex.EncodeToString(key[:]))); err != nil {
		g.dev.Close()
		return nil, fmt.Errorf("configure WireGuard: %w", err)
	}
	return g, nil
}

// overheard tells the greeter what is sent where.
type overheard struct {
	conn.Bind
	g *greeter
}

func (b overheard) Send(bufs [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(bufs, ep)
	switch {
	case len(bufs) == 1 && len(bufs[0]) == device.MessageInitiationSize && bufs[0][0] == device.MessageInitiationType:
		b.g.agree(ep.DstToString(), firstPause)
	case len(bufs) == 1 && len(bufs[0]) == device.MessageResponseSize && bufs[0][0] == device.MessageResponseType:
		b.g.agree(ep.DstToString(), answered)
	case b.g.awaiting.Load() > 0 && bufs[0][0] == device.MessageTransportType:
		b.g.arrived(ep.DstToString())
	}
	return err
}

// greet tells a peer of the device that this one is there, and begins a session if there is none.
func (g *greeter) greet(peer wgtypes.Key) {
	g.forget(peer)
	g.mu.Lock()
	defer g.mu.Unlock()
	p := &greeting{}
	g.peers[peer] = p
	g.begin(p, func(ctx context.Context) {
		if !pause(ctx, g.word(peer)) {
			return
		}
		if to := g.dev.LookupPeer(device.NoisePublicKey(peer)); to != nil {
			to.SendKeepalive() // begins a handshake first, unless one has begun just now
		}
	})
}

// agree is told of each handshake that the device begins or answers, whoever made it do so, and
// repeats those that have not led to a session after a while.
func (g *greeter) agree(endpoint string, after time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.start(func() {
		if !pause(g.ctx, after) {
			return
		}
		for peer, s := range g.sessions() {
			if s.endpoint == endpoint && !s.usable() {
				g.repeat(peer)
			}
		}
	})
}

// repeat begins handshakes until there is a session.
func (g *greeter) repeat(peer wgtypes.Key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[peer]
	if p == nil || p.end != nil || time.Since(p.vain) < vainFor {
		return
	}
	g.begin(p, func(ctx context.Context) {
		wait := g.word(peer)
		had := g.sessions()[peer].agreed
		for n := range maxTries {
			if !pause(ctx, wait) || g.sendable(ctx, peer, n > 0) || ctx.Err() != nil {
				return
			}
			g.initiate(peer)
			wait = firstPause << n
			wait += rand.N(wait/4) + g.word(peer)<<n
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		p.vain, p.had = time.Now(), had
	})
}

// inVain are the peers with which all was tried, and nothing agreed since. Whether they would
// answer now is not known before there is something to send.
func (g *greeter) inVain() (all []wgtypes.Key, err error) {
	sessions, err := g.read()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for peer, p := range g.peers {
		// The answer to the last try may be under way.
		if !p.vain.IsZero() && time.Since(p.vain) > device.RekeyTimeout && sessions[peer].agreed.Equal(p.had) {
			all = append(all, peer)
		}
	}
	return all, nil
}

// sendable tells whether packets can be sent to a peer, of which only a packet is proof once
// initiate was called: a session that began with this end's answer, and was confirmed only
// after initiate, takes none. WireGuard would keep them for 5 s, and then begin another.
func (g *greeter) sendable(ctx context.Context, peer wgtypes.Key, initiated bool) bool {
	s := g.sessions()[peer]
	if !s.usable() || !initiated {
		return s.usable()
	}
	to := g.dev.LookupPeer(device.NoisePublicKey(peer))
	if to == nil { // removed just now
		return true
	}
	sent := g.await(s.endpoint)
	defer g.arrived(s.endpoint)
	to.SendKeepalive()
	timer := time.NewTimer(proof)
	defer timer.Stop()
	select {
	case <-sent:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// await returns what is closed when a packet is sent to an endpoint, or by arrived.
func (g *greeter) await(endpoint string) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	sent := g.awaited[endpoint]
	if sent == nil {
		sent = make(chan struct{})
		g.awaited[endpoint] = sent
		g.awaiting.Add(1)
	}
	return sent
}

// arrived ends that somebody waits for a packet to an endpoint.
func (g *greeter) arrived(endpoint string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if sent := g.awaited[endpoint]; sent != nil {
		close(sent)
		delete(g.awaited, endpoint)
		g.awaiting.Add(-1)
	}
}

// word is how long this peer leaves the word to another.
func (g *greeter) word(peer wgtypes.Key) time.Duration {
	if bytes.Compare(g.own[:], peer[:]) < 0 {
		return 0
	}
	return firstWord
}

// initiate begins a handshake, although WireGuard has begun one in the last 5 s. What has been
// agreed, or is being, takes no packets from here on; those of the other end are still read.
func (g *greeter) initiate(peer wgtypes.Key) {
	to := g.dev.LookupPeer(device.NoisePublicKey(peer))
	if to == nil { // removed just now
		return
	}
	to.ExpireCurrentKeypairs()
	if err := to.SendHandshakeInitiation(false); err != nil {
		g.log.Debug("a handshake cannot be begun", "peer", to, "err", err)
	}
}

// forget ends what is under way with a peer.
func (g *greeter) forget(peer wgtypes.Key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[peer]; p != nil && p.end != nil {
		p.end()
	}
	delete(g.peers, peer)
}

// close ends the device and all that is under way, and waits for it. Nothing is begun afterwards.
func (g *greeter) close() {
	g.dev.Close()
	g.mu.Lock()
	g.end()
	g.mu.Unlock()
	g.running.Wait()
}

// begin is called with mu held.
func (g *greeter) begin(p *greeting, f func(context.Context)) {
	ctx, end := context.WithCancel(g.ctx)
	p.end = end
	g.start(func() {
		f(ctx)
		end()
		g.mu.Lock()
		defer g.mu.Unlock()
		p.end = nil
	})
}

// start is called with mu held.
func (g *greeter) start(f func()) {
	if g.ctx.Err() == nil {
		g.running.Go(f)
	}
}

// pause tells whether d has passed before the end of ctx.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// session is the last that the device had with a peer.
type session struct {
	endpoint string
	agreed   time.Time // when both ends had the keys; zero: never
}

// usable tells whether packets can be sent, as far as this end knows.
func (s session) usable() bool { return time.Since(s.agreed) < device.RejectAfterTime }

// sessions are those that can be read; why others cannot is logged.
func (g *greeter) sessions() map[wgtypes.Key]session {
	all, err := g.read()
	if err != nil {
		g.log.Error("WireGuard's sessions cannot be read", "err", err)
	}
	return all
}

// read asks the device for the last session with each peer.
func (g *greeter) read() (map[wgtypes.Key]session, error) {
	text, err := g.dev.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("read the device: %w", err)
	}
	return parseSessions(text)
}

// parseSessions reads what the configuration protocol says of peers, by their public keys
// (https://www.wireguard.com/xplatform/#configuration-protocol).
func parseSessions(text string) (map[wgtypes.Key]session, error) {
	all := map[wgtypes.Key]session{}
	_, text, found := strings.Cut(text, "public_key=") // the device's own part
	if !found {
		return all, nil
	}
	for _, peer := range strings.Split(text, "\npublic_key=") {
		key, rest, _ := strings.Cut(peer, "\n")
		raw, err := hex.DecodeString(key)
		if err != nil || len(raw) != len(wgtypes.Key{}) {
			return nil, fmt.Errorf("read public key %q: not 32 bytes in hex", key)
		}
		fields := map[string]string{}
		for line := range strings.Lines(rest) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			fields[name] = value
		}
		sec, errSec := strconv.ParseInt(fields["last_handshake_time_sec"], 10, 64)
		nsec, errNsec := strconv.ParseInt(fields["last_handshake_time_nsec"], 10, 64)
		if err := errors.Join(errSec, errNsec); err != nil {
			return nil, fmt.Errorf("read time of the last handshake: %w", err)
		}
		s := session{endpoint: fields["endpoint"]}
		if sec != 0 || nsec != 0 {
			s.agreed = time.Unix(sec, nsec)
		}
		all[wgtypes.Key(raw)] = s
	}
	return all, nil
}
