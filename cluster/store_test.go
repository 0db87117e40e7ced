package cluster

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// testLog writes to the test's log, and to nothing after its end: gossip may
// have a last word.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t.Context(), t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct {
	ctx context.Context
	t   *testing.T
}

func (w testWriter) Write(b []byte) (int, error) {
	if w.ctx.Err() == nil {
		w.t.Logf("%s", b)
	}
	return len(b), nil
}

func newIdentity(t *testing.T, name string) *identity.Identity {
	t.Helper()
	id, err := identity.Create(t.TempDir(), identity.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// joinIdentity makes the identity of another peer of id's cluster, without a store.
func joinIdentity(t *testing.T, id *identity.Identity, name string) *identity.Identity {
	t.Helper()
	req, err := identity.NewRequest(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	csr, err := req.CSR(name)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := identity.ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.SignPeer(name, pub, nil)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := id.Bundle(cert)
	if err != nil {
		t.Fatal(err)
	}
	other, err := req.Adopt(bundle)
	if err != nil {
		t.Fatal(err)
	}
	return other
}

func newStore(t *testing.T) *raftstore.Memory {
	t.Helper()
	return raftstore.NewMemory()
}

func peer(name, fingerprint string) Peer {
	return Peer{Name: name, Address: netip.MustParseAddr("192.0.2.1"), Port: 6443, GossipPort: 7946, Fingerprint: fingerprint}
}

// eventually polls until ok or the deadline.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond) // the pause of a poll
	}
}
