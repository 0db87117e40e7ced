package podman

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
)

// BenchmarkPods starts ten pods of one container each at the same time: with
// different bounds on concurrent starts, and by plain HTTP requests to Podman's
// API as the yardstick. One iteration is ten pods.
func BenchmarkPods(b *testing.B) {
	requirePodman(b)
	s := startService(b)
	program := buildGuest(b)
	load(b, s, guestArchive(b, guestImage, program))
	for _, bound := range []int{1, 2, 3, 4, 6, 10} {
		b.Run(fmt.Sprintf("bound=%d", bound), func(b *testing.B) {
			r := newRuntime(b, s.socket, "bench")
			r.starts = make(chan struct{}, bound)
			b.ResetTimer()
			for b.Loop() {
				benchPods(b, r, func(ctx context.Context, name string) error {
					sandbox, err := r.RunSandbox(ctx, runtime.SandboxSpec{Name: name})
					if err != nil {
						return err
					}
					id, err := r.CreateContainer(ctx, sandbox.ID, runtime.ContainerSpec{Name: name + "-c", Image: guestImage})
					if err != nil {
						return err
					}
					return r.StartContainer(ctx, id)
				})
			}
		})
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 10, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
	}}}
	post := func(path, body string) error {
		resp, err := client.Post("http://d/v4.0.0/libpod/"+path, "application/json", strings.NewReader(body))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode >= 300 {
			err = fmt.Errorf("%s: %s", resp.Status, answer)
		}
		return err
	}
	b.Run("api", func(b *testing.B) {
		r := newRuntime(b, s.socket, "bench")
		for b.Loop() {
			benchPods(b, r, func(_ context.Context, name string) error {
				if err := post("pods/create", fmt.Sprintf(`{"name":%q,"infra_name":"%s-infra","netns":{"nsmode":"none"},"labels":{%q:"bench"}}`, name, name, runtime.LabelOwner)); err != nil {
					return err
				}
				if err := post("containers/create", fmt.Sprintf(`{"name":"%s-c","pod":%q,"image":%q}`, name, name, guestImage)); err != nil {
					return err
				}
				if err := post("containers/"+name+"-infra/start", ""); err != nil {
					return err
				}
				return post("containers/"+name+"-c/start", "")
			})
		}
	})
}

// benchPods times ten starts, and removes what they made outside the time.
func benchPods(b *testing.B, r *Runtime, start func(context.Context, string) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var group sync.WaitGroup
	for i := range 10 {
		group.Go(func() {
			if err := start(ctx, fmt.Sprintf("pod%d", i)); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
	b.StopTimer()
	list, err := r.List(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, sandbox := range list {
		if err := r.RemoveSandbox(ctx, sandbox.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.StartTimer()
}
