package probe

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// When probes are asked and what follows, by every knob. The program is well from and until
// some second after its start; what is told are the seconds of the requests and the changes.
func TestSet(t *testing.T) {
	for _, tt := range []struct {
		name, container string
		well            func(second int) bool
		restarted       time.Duration // how long ago the container was started; the daemon is new
		ready           bool          // and it was ready before
		until           int
		want            string
	}{
		{"liveness fails for good", `livenessProbe: {initialDelaySeconds: 2, periodSeconds: 3, failureThreshold: 2}`,
			func(s int) bool { return s < 4 }, 0, false, 20,
			"2 Liveness, 5 Liveness missed, 8 Liveness missed, 8 failed=Liveness"},
		{"one failure is forgiven", `livenessProbe: {periodSeconds: 1, failureThreshold: 2}`,
			func(s int) bool { return s != 1 }, 0, false, 3,
			"0 Liveness, 1 Liveness missed, 2 Liveness, 3 Liveness"},
		{"startup holds the others back", `{startupProbe: {periodSeconds: 2, failureThreshold: 3}, livenessProbe: {periodSeconds: 10, failureThreshold: 1}, readinessProbe: {periodSeconds: 10}}`,
			func(s int) bool { return s >= 4 }, 0, false, 5,
			"0 Startup missed, 2 Startup missed, 4 Startup, 4 started, 4 Liveness, 4 Readiness, 4 started ready"},
		{"startup fails", `{startupProbe: {periodSeconds: 2, failureThreshold: 2}, livenessProbe: {periodSeconds: 1}}`,
			func(int) bool { return false }, 0, false, 9,
			"0 Startup missed, 2 Startup missed, 2 failed=Startup"},
		{"success in a row", `readinessProbe: {periodSeconds: 2, successThreshold: 3, failureThreshold: 2}`,
			func(s int) bool { return s < 6 }, 0, false, 9,
			"0 Readiness, 2 Readiness, 4 Readiness, 4 started ready, 6 Readiness missed, 8 Readiness missed, 8 started"},
		{"the delay counts from the start", `readinessProbe: {initialDelaySeconds: 10, periodSeconds: 60}`,
			func(int) bool { return true }, 7 * time.Second, false, 9,
			"3 Readiness, 3 started ready"},
		{"the clock was set back since", `livenessProbe: {initialDelaySeconds: 2, periodSeconds: 60}`,
			func(int) bool { return true }, -time.Hour, false, 9,
			"2 Liveness"},
		{"ready until it says no", `readinessProbe: {periodSeconds: 2, failureThreshold: 2}`,
			func(s int) bool { return s < 2 }, time.Hour, true, 5,
			"0 Readiness, 2 Readiness missed, 4 Readiness missed, 4 started"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &v1.Container{}
			if err := yaml.UnmarshalStrict([]byte(tt.container), c); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var mu sync.Mutex
				var set *Set
				said := ""
				say := func(format string, args ...any) {
					mu.Lock()
					defer mu.Unlock()
					if said != "" {
						said += ", "
					}
					said += fmt.Sprint(int(time.Since(began).Seconds()), " ", fmt.Sprintf(format, args...))
				}
				kinds := map[*v1.Probe]Kind{c.StartupProbe: Startup, c.LivenessProbe: Liveness, c.ReadinessProbe: Readiness}
				mu.Lock()
				set = New(t.Context(), Config{
					Container: c, StartedAt: began.Add(-tt.restarted), AlreadyReady: tt.ready,
					Once: func(_ context.Context, p *v1.Probe) (bool, string) {
						if kinds[p] == Readiness {
							time.Sleep(time.Millisecond) // so that they have an order
						}
						well := tt.well(int(time.Since(began).Seconds()))
						if well {
							say("%s", kinds[p])
						}
						return well, ""
					},
					Changed: func() {
						mu.Lock()
						v := set.Verdict()
						mu.Unlock()
						switch {
						case v.Failed != "":
							say("failed=%s", v.Failed)
						case v.Ready:
							say("started ready")
						default:
							say("started")
						}
					},
					Missed: func(kind Kind, _ string) { say("%s missed", kind) },
				})
				mu.Unlock()
				time.Sleep(time.Duration(tt.until)*time.Second + 500*time.Millisecond)
				set.Stop()
				if said != tt.want {
					t.Errorf("have %s\nwant %s", said, tt.want)
				}
			})
		})
	}
}
