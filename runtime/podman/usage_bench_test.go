package podman

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/rundigitalplatform/rookery/runtime"
)

// BenchmarkUsage asks for the usage of thirty running pods, with Podman's own
// statistics as the yardstick.
func BenchmarkUsage(b *testing.B) {
	requirePodman(b)
	s := startService(b)
	load(b, s, guestArchive(b, guestImage, buildGuest(b)))
	r := newRuntime(b, s.socket, "bench")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var ids []string
	for i := range 30 {
		sandbox, err := r.RunSandbox(ctx, runtime.SandboxSpec{Name: fmt.Sprintf("pod%d", i)})
		if err != nil {
			b.Fatal(err)
		}
		id, err := r.CreateContainer(ctx, sandbox.ID, runtime.ContainerSpec{Name: fmt.Sprintf("c%d", i), Image: guestImage})
		if err != nil {
			b.Fatal(err)
		}
		if err := r.StartContainer(ctx, id); err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
	}
	list, err := r.List(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("cgroups", func(b *testing.B) {
		for b.Loop() {
			for _, sandbox := range list {
				if u, err := r.Usage(ctx, sandbox); err != nil || len(u) != 1 {
					b.Fatal(u, err)
				}
			}
		}
	})
	b.Run("podman", func(b *testing.B) {
		for b.Loop() {
			if err := do(ctx, r.engine, func(ctx context.Context) error {
				reports, err := containers.Stats(ctx, ids, new(containers.StatsOptions).WithStream(false))
				if err != nil {
					return err
				}
				for report := range reports {
					if report.Error != nil || len(report.Stats) != len(ids) {
						return fmt.Errorf("%d containers, %w", len(report.Stats), report.Error)
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
