package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// A thousand acknowledged writes, while daemons are killed at random, are all
// there on every peer afterwards, and the peers' states are equal.
func TestAcknowledgedWritesSurvive(t *testing.T) {
	const total, writers = 1000, 8
	allReady(t, patience)
	sh(t, "h1", "rookery create namespace writes")
	cert, key, err := shared.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() { killAtRandom(t, stop) })

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	next := make(chan int)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range next {
				name := fmt.Sprintf("w%04d", n)
				host := shared.Peers()[(w+n)%3].Name
				if write(t.Context(), host, name, cert, key) {
					mu.Lock()
					acknowledged[name] = true
					mu.Unlock()
				}
			}
		})
	}
	n := 0
	for deadline := time.Now().Add(20 * time.Minute); time.Now().Before(deadline); n++ {
		mu.Lock()
		done := len(acknowledged)
		mu.Unlock()
		if done >= total {
			break
		}
		next <- n
	}
	close(next)
	all.Wait()
	close(stop)
	killer.Wait()
	t.Logf("%d of %d attempts were acknowledged", len(acknowledged), n)
	if len(acknowledged) < total {
		t.Errorf("only %d writes were acknowledged in time", len(acknowledged))
	}
	for _, h := range shared.Peers() {
		if err := shared.Start(t.Context(), h.Name); err != nil && !strings.Contains(err.Error(), "runs already") {
			t.Fatal(err)
		}
	}
	allReady(t, patience)
	agree(t)
	for _, h := range shared.Peers() {
		out := sh(t, h.Name, "rookery get --raw /api/v1/namespaces/writes/configmaps?resourceVersion=0")
		var list struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, i := range list.Items {
			found[i.Metadata.Name] = true
		}
		for name := range acknowledged {
			if !found[name] {
				t.Errorf("%s has lost %s, which was acknowledged", h.Name, name)
			}
		}
	}
	// A thousand commits, each on three peers' disks.
	if out, err := shared.Run(t.Context(), "h1", "rookery", "delete", "namespace", "writes", "--timeout=10m"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// write creates one ConfigMap through a peer's API and tells whether it was acknowledged.
func write(ctx context.Context, host, name, cert, key string) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	h, err := shared.Host(host)
	if err != nil {
		return false
	}
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q}}`, name)
	out, err := shared.Run(ctx, "client", "curl", "-sk", "--max-time", "8", "--cert", cert, "--key", key,
		"-H", "Content-Type: application/json", "-o", "/dev/null", "-w", "%{http_code}", "-d", body, "https://"+h.IP+":6443/api/v1/namespaces/writes/configmaps")
	return err == nil && strings.TrimSpace(out) == "201"
}

// killAtRandom kills one daemon after another, one at a time, and starts it again.
func killAtRandom(t *testing.T, stop chan struct{}) {
	for {
		victim := shared.Peers()[rand.IntN(3)].Name
		if err := shared.Kill(t.Context(), victim); err != nil {
			t.Errorf("kill %s: %v", victim, err)
		}
		time.Sleep(time.Duration(500+rand.IntN(2500)) * time.Millisecond)
		if err := shared.Start(t.Context(), victim); err != nil {
			t.Errorf("start %s: %v", victim, err)
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(2000+rand.IntN(3000)) * time.Millisecond):
		}
	}
}
