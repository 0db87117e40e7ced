package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	ktesting "k8s.io/client-go/testing"

	"golang.org/x/sys/unix"
)

// The clock is set by a nanosecond.
func TestClockSet(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- clockSet(ctx, func() { told <- struct{}{} }) }()
	late := time.After(time.Minute)
	for n := 0; n < 2; {
		if _, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Usec: 1}}); errors.Is(err, unix.EPERM) && os.Getenv("ROOKERY_SKIP_ROOT") == "1" {
			t.Skip("setting the clock needs root")
		} else if err != nil {
			t.Fatalf("set the clock: %v; run as root, or set ROOKERY_SKIP_ROOT=1 to go without", err)
		}
		select {
		case <-told:
			n++
		case <-time.After(100 * time.Millisecond): // it was not waited for yet
		case <-late:
			t.Fatalf("it was told %d times", n)
		case err := <-ended:
			t.Fatalf("ended: %v", err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTokensAfterClockJump(t *testing.T) {
	inWorld(t, func(w *world) {
		issued := 0
		w.client.PrependReactor("create", "serviceaccounts", func(ktesting.Action) (bool, kruntime.Object, error) {
			issued++
			return true, &authv1.TokenRequest{Status: authv1.TokenRequestStatus{
				Token: string(rune('a' + issued)), ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour)),
			}}, nil
		})
		w.create(`
metadata: {name: a}
spec:
  containers:
  - {name: web, image: "localhost/hello:1", volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: token}}]}}]
`)
		before := issued
		w.agent.renewTokens()
		w.settle()
		if data, err := os.ReadFile(filepath.Join(w.dir, "uid-a", "volumes", "v", "token")); err != nil || issued != before+1 || string(data) != string(rune('a'+issued)) {
			t.Errorf("issued %d, then %d; the file says %q %v", before, issued, data, err)
		}
	})
}
