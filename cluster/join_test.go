package cluster

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// site is a cluster of one peer that takes joiners on loopback.
type site struct {
	id       *identity.Identity
	store    Store
	registry *Registry
	tokens   *Tokens
	port     *Port
	host     string
}

// brokenStore loses its quorum on demand.
type brokenStore struct {
	*raftstore.Memory
	mu     sync.Mutex
	broken bool
}

func (b *brokenStore) lose() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = true
}

func (b *brokenStore) Sync(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return &raftstore.NoQuorumError{Missing: []string{"two"}, Voters: 2}
	}
	return b.Memory.Sync(ctx)
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{id: newIdentity(t, "one"), store: &brokenStore{Memory: newStore(t)}}
	s.registry = NewRegistry(s.store, s.id.Settings())
	s.tokens = NewTokens(s.store, s.id.Pin())
	self := peer("one", s.id.Fingerprint())
	if _, err := s.registry.Register(t.Context(), self); err != nil {
		t.Fatal(err)
	}
	s.port = startPort(t, s.id, PortConfig{Allowed: s.registry.Allowed})
	mux := http.NewServeMux()
	mux.Handle(JoinPath, &JoinHandler{Identity: s.id, Registry: s.registry, Tokens: s.tokens, Log: testLog(t)})
	serveAPI(t, s.port, mux)
	s.host = s.port.Addr().String()
	return s
}

func (s *site) token(t *testing.T) string {
	t.Helper()
	tok, err := s.tokens.Create(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return tok.String()
}

func TestJoin(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	got, err := Join(t.Context(), s.host, s.token(t), JoinOptions{Dir: dir, Name: "two", Version: "v0"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Self.PodCIDR.String() != "10.42.1.0/24" || got.Self.Address != netip.MustParseAddr("127.0.0.1") || len(got.Peers) != 2 {
		t.Errorf("joined as %+v among %d", got.Self, len(got.Peers))
	}
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id.Pin() != s.id.Pin() || string(id.GossipKey()) != string(s.id.GossipKey()) || id.Fingerprint() != got.Self.Fingerprint ||
		!id.ServiceAccountKey().Equal(s.id.ServiceAccountKey()) || id.Settings() != s.id.Settings() {
		t.Error("the joiner's identity is not of this cluster")
	}
	if ks, err := loadKnown(dir); err != nil || len(ks) != 1 || ks[0].Name != "one" {
		t.Errorf("known peers %v, %v", ks, err)
	}
	if _, err := os.Stat(id.KubeconfigPath()); err != nil {
		t.Error(err)
	}
	if p, err := s.registry.Peer("two"); err != nil || p != got.Self {
		t.Errorf("record %+v, %v", p, err)
	}
}

// The answer is lost after the record was written; the same machine asks again.
func TestJoinAgain(t *testing.T) {
	s := newSite(t)
	dir, other := t.TempDir(), t.TempDir()
	if _, err := identity.NewRequest(dir); err != nil { // the keys of the lost attempt
		t.Fatal(err)
	}
	pending, err := os.ReadFile(filepath.Join(dir, "join.pending"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "join.pending"), pending, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := Join(t.Context(), s.host, s.token(t), JoinOptions{Dir: other, Name: "two"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Join(t.Context(), s.host, s.token(t), JoinOptions{Dir: dir, Name: "two"})
	if err != nil {
		t.Fatal(err)
	}
	if first.Self != again.Self {
		t.Errorf("joined as %+v, then as %+v", first.Self, again.Self)
	}
	if _, err := os.Stat(filepath.Join(dir, "join.pending")); !os.IsNotExist(err) {
		t.Errorf("the pending keys are still there: %v", err)
	}
}

func TestJoinRefused(t *testing.T) {
	s, foreign := newSite(t), newSite(t)
	good := s.token(t)
	if _, err := Join(t.Context(), s.host, good, JoinOptions{Dir: t.TempDir(), Name: "two"}); err != nil {
		t.Fatal(err)
	}
	revoked := s.token(t)
	if err := s.tokens.Revoke(t.Context(), revoked); err != nil {
		t.Fatal(err)
	}
	expired, err := s.tokens.Create(t.Context(), time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := newToken(s.id.Pin())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	for _, tc := range []struct {
		name, host, token, peer string
		want                    error
		text                    string
	}{
		{"malformed", s.host, "rk1.x", "three", ErrTokenMalformed, "copy the whole line"},
		{"wrong", s.host, wrong.String(), "three", ErrTokenUnknown, "rookery token create"},
		{"revoked", s.host, revoked, "three", ErrTokenUnknown, "rookery token create"},
		{"expired", s.host, expired.String(), "three", ErrTokenExpired, "rookery token create"},
		{"of another cluster", s.host, foreign.token(t), "three", ErrTokenForeign, "another cluster"},
		{"same name", s.host, good, "two", ErrNameTaken, "rookery peers remove two"},
		{"the server's name", s.host, good, "one", ErrNameTaken, "--name"},
		{"bad name", s.host, good, "Three", nil, "upper-case"},
		{"nobody there", nobody, good, "three", nil, "is Rookery running there"},
		{"bad host", "http://x/", good, "three", nil, "not a host to join"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			_, err := Join(t.Context(), tc.host, tc.token, JoinOptions{Dir: dir, Name: tc.peer})
			if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
				t.Fatalf("Join = %v, want %v", err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("the message lacks %q: %v", tc.text, err)
			}
			if ok, err := identity.Exists(dir); ok || err != nil {
				t.Errorf("an identity was left: %v, %v", ok, err)
			}
			if _, err := s.registry.Peer("three"); !errors.Is(err, ErrNoPeer) {
				t.Errorf("a record was left: %v", err)
			}
		})
	}
}

func TestJoinWithoutQuorum(t *testing.T) {
	s := newSite(t)
	token := s.token(t)
	s.store.(*brokenStore).lose()
	_, err := Join(t.Context(), s.host, token, JoinOptions{Dir: t.TempDir(), Name: "two"})
	var refused *JoinError
	if !errors.As(err, &refused) || refused.Code != "no-quorum" || !strings.Contains(err.Error(), "two") {
		t.Errorf("Join = %v", err)
	}
}

func TestJoinGuessingIsSlowedDown(t *testing.T) {
	s := newSite(t)
	for i := range failureBurst + 1 {
		wrong, err := newToken(s.id.Pin())
		if err != nil {
			t.Fatal(err)
		}
		want := ErrTokenUnknown
		if i == failureBurst {
			want = ErrTooMany
		}
		if _, err := Join(t.Context(), s.host, wrong.String(), JoinOptions{Dir: t.TempDir(), Name: "two"}); !errors.Is(err, want) {
			t.Fatalf("guess %d: %v, want %v", i, err, want)
		}
	}
}

func TestFailureLimit(t *testing.T) {
	var l failureLimit
	t0 := time.Unix(1e9, 0)
	from := netip.MustParseAddr("192.0.2.1")
	for range failureBurst {
		l.failed(from, t0)
	}
	if l.allow(from, t0) || !l.allow(from, t0.Add(failureRefill)) || !l.allow(netip.MustParseAddr("192.0.2.2"), t0) {
		t.Error("the limit does not hold, does not end, or holds for all")
	}
	for i := range 3 * failureTracked {
		l.failed(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), t0)
	}
	if len(l.fails) > failureTracked || l.allow(from, t0) {
		t.Errorf("%d addresses are tracked; the worst is allowed: %v", len(l.fails), l.allow(from, t0))
	}
}

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"peer1": "peer1:6443", "peer1:7": "peer1:7", "192.0.2.1": "192.0.2.1:6443", "192.0.2.1:9": "192.0.2.1:9",
		"fd00::1": "[fd00::1]:6443", "[fd00::1]": "[fd00::1]:6443", "[fd00::1]:9": "[fd00::1]:9",
		"": "", ":6443": "", "a:b": "", "a:0": "", "https://a": "", "a/b": "", "a b": "", "a:70000": "",
	} {
		got, err := ParseHost(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}
