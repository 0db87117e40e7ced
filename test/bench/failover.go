package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

type loadReport struct {
	Sent, Failed int
	LastFailure  time.Time
}

// load starts requests through the Service from a host; call the result to wait for the report.
func (b *bench) load(host string, rate int, length time.Duration) (func() (loadReport, error), error) {
	cmd, err := b.lab.Command(context.Background(), host, b.lab.Bin+"/hello", "load", "-rate", fmt.Sprint(rate), "-for", length.String(), "http://hello.hello.svc.cluster.local/")
	if err != nil {
		return nil, err
	}
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() (r loadReport, err error) {
		if err := cmd.Wait(); err != nil {
			return r, fmt.Errorf("load: %w: %s", err, stderr.String())
		}
		err = json.Unmarshal([]byte(out.String()), &r)
		return r, err
	}, nil
}

func (b *bench) leader(ctx context.Context) (string, error) {
	var s struct{ Leader string }
	err := b.until(ctx, 20*time.Second, func() error {
		if err := b.lab.JSON(ctx, &s, "h1", "rookery", "status", "--json"); err != nil {
			return err
		}
		if s.Leader == "" {
			return fmt.Errorf("there is no leader")
		}
		return nil
	})
	return s.Leader, err
}

// measureFailover cuts off a peer with 10 of 30 pods under load, then kills the leader's daemon.
func measureFailover(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.scale(ctx, replicas); err != nil {
		return nil, err
	}
	lead, err := b.leader(ctx)
	if err != nil {
		return nil, err
	}
	var followers []string
	for _, h := range b.lab.Peers() {
		if h.Name != lead {
			followers = append(followers, h.Name)
		}
	}
	victim, observer := followers[0], followers[1]
	elsewhere, _, err := b.ready(ctx, observer, victim)
	if err != nil {
		return nil, err
	}
	report, err := b.load(observer, 200, 30*time.Second)
	if err != nil {
		return nil, err
	}
	if err := b.settle(ctx, time.Second); err != nil {
		return nil, err
	}
	cutAt := time.Now()
	if err := b.lab.Cut(ctx, victim); err != nil {
		return nil, err
	}
	for _, n := range []int{elsewhere, replicas} { // the loss is noticed, then made good
		if _, err := b.lab.Run(ctx, observer, "rookery", "-n", "hello", "wait", fmt.Sprintf("--for=jsonpath={.status.readyReplicas}=%d", n), "deployment/hello", "--timeout=60s"); err != nil {
			return nil, err
		}
	}
	moved := time.Since(cutAt)
	r, err := report()
	if err != nil {
		return nil, err
	}
	last := 0.0
	if r.Failed > 0 {
		last = r.LastFailure.Sub(cutAt).Seconds()
	}
	b.say(fmt.Sprintf("cut %s: %d of %d requests failed", victim, r.Failed, r.Sent))
	if err := b.lab.Heal(ctx, victim); err != nil {
		return nil, err
	}
	if err := b.scale(ctx, replicas); err != nil { // and the leftovers are gone
		return nil, err
	}
	writes, err := b.killLeader(ctx)
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "failover/last-failed-request", value: last, unit: "s", yardstick: "-", budget: 3},
		{name: "failover/10-of-30-ready", value: moved.Seconds(), unit: "s", yardstick: "Swarm 19-21, Kubernetes 330", budget: 15},
		{name: "failover/writes-after-leader", value: writes.Seconds(), unit: "s", yardstick: "-", budget: 3},
	}, nil
}

func (b *bench) killLeader(ctx context.Context) (time.Duration, error) {
	lead, err := b.leader(ctx)
	if err != nil {
		return 0, err
	}
	other := "h1"
	if lead == other {
		other = "h2"
	}
	began := time.Now()
	if err := b.lab.Kill(ctx, lead); err != nil {
		return 0, err
	}
	err = b.until(ctx, 30*time.Second, func() error {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := b.lab.Run(try, other, "rookery", "-n", "hello", "create", "configmap", fmt.Sprintf("bench-%d", time.Now().UnixNano()))
		return err
	})
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	return took, b.lab.Start(ctx, lead)
}
