package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// named is how many Services the zone has.
	named = 100
	// resolvers is how many clients ask at once.
	resolvers = 16
)

// asked is what `bench dns-client` prints: a second, and seconds.
type asked struct{ Queries, Median, P99 float64 }

// measureNames compares the cluster's DNS with CoreDNS on the same machine: both hold the same
// names, both are asked from the host that they are on, in turn. CoreDNS reads them from a file
// (its plugin file, and no other), so it has no objects to follow and nothing to look up.
func measureNames(ctx context.Context, b *bench) (figures []figure, err error) {
	core := b.lab.Dir + "/coredns"
	build := exec.CommandContext(ctx, "go", "build", "-o", core, ".")
	build.Dir = "test/bench/coredns"
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build CoreDNS: %w: %s", err, out)
	}
	names, remove, err := b.names(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := b.corefile(names); err != nil {
		return nil, err
	}
	end, err := b.background(ctx, "client", core, "-conf", b.lab.Dir+"/Corefile")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	client, err := b.lab.Host("client")
	if err != nil {
		return nil, err
	}
	ask := func(host, server string, length time.Duration) (r asked, err error) {
		err = b.lab.JSON(ctx, &r, host, self, "dns-client", "-for", length.String(), server)
		return r, err
	}
	const ours = "10.43.0.10:53"
	theirs := client.IP + ":53"
	for host, server := range map[string]string{"h1": ours, "client": theirs} { // until all names are there
		if err := b.until(ctx, time.Minute, func() error { _, err := ask(host, server, 100*time.Millisecond); return err }); err != nil {
			return nil, err
		}
	}
	var sum [2]asked
	const rounds = 3
	for range rounds {
		for i, at := range [2][2]string{{"h1", ours}, {"client", theirs}} {
			r, err := ask(at[0], at[1], 3*time.Second)
			if err != nil {
				return nil, err
			}
			sum[i].Queries += r.Queries / rounds
			sum[i].Median += r.Median * 1e6 / rounds
			sum[i].P99 += r.P99 * 1e6 / rounds
		}
	}
	return []figure{
		{name: "dns/queries", value: sum[0].Queries, unit: "1/s", yardstick: fmt.Sprintf("CoreDNS %.0f", sum[1].Queries)},
		{name: "dns/queries-ratio", value: sum[0].Queries / sum[1].Queries, unit: "x", yardstick: "CoreDNS, a file", budget: 1, atLeast: true},
		{name: "dns/median", value: sum[0].Median, unit: "us", yardstick: fmt.Sprintf("CoreDNS %.0f", sum[1].Median)},
		{name: "dns/p99", value: sum[0].P99, unit: "us", yardstick: fmt.Sprintf("CoreDNS %.0f", sum[1].P99)},
		{name: "dns/p99-ratio", value: sum[0].P99 / sum[1].P99, unit: "x", yardstick: "CoreDNS, a file", budget: 1.2},
	}, nil
}

// names makes the Services that are asked for; the result is their addresses by name.
func (b *bench) names(ctx context.Context) (addrs map[string]string, remove func() error, err error) {
	api, err := b.lab.API()
	if err != nil {
		return nil, nil, err
	}
	all := api.CoreV1().Services(metav1.NamespaceDefault)
	remove = func() error {
		var errs []error
		for i := range named {
			errs = append(errs, all.Delete(ctx, fmt.Sprintf("name-%d", i), metav1.DeleteOptions{}))
		}
		return errors.Join(errs...)
	}
	addrs = map[string]string{}
	for i := range named {
		made, err := all.Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("name-%d", i)}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
		}, metav1.CreateOptions{})
		if err != nil {
			return nil, nil, err
		}
		addrs[made.Name] = made.Spec.ClusterIP
	}
	return addrs, remove, nil
}

// corefile writes the same names for CoreDNS.
func (b *bench) corefile(names map[string]string) error {
	zone := filepath.Join(b.lab.Dir, "cluster.local.zone")
	var text bytes.Buffer
	fmt.Fprintln(&text, "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5")
	fmt.Fprintln(&text, "cluster.local. 5 IN NS ns.dns.cluster.local.\nns.dns.cluster.local. 5 IN A 10.43.0.10")
	for name, ip := range names {
		fmt.Fprintf(&text, "%s.default.svc.cluster.local. 5 IN A %s\n", name, ip)
	}
	if err := os.WriteFile(zone, text.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(b.lab.Dir+"/Corefile", fmt.Appendf(nil, "cluster.local:53 {\n file %s {\n  reload 0\n }\n}\n", zone), 0o644)
}

// dnsClient asks a server as fast as it answers: half for addresses, a quarter for those of the other
// IP family, which are not there, and a quarter for names that are not there, as a pod's search path does.
func dnsClient(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("dns-client", flag.ContinueOnError)
	length := f.Duration("for", 3*time.Second, "for how long")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("usage: bench dns-client [-for D] ADDR:PORT")
	}
	var mu sync.Mutex
	var took []time.Duration
	var errs []error
	var all sync.WaitGroup
	began := time.Now()
	for n := range resolvers {
		all.Go(func() {
			mine, err := resolve(ctx, f.Arg(0), n, began.Add(*length))
			mu.Lock()
			defer mu.Unlock()
			took, errs = append(took, mine...), append(errs, err)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	slices.Sort(took)
	return json.NewEncoder(os.Stdout).Encode(asked{
		Queries: float64(len(took)) / seconds, Median: took[len(took)/2].Seconds(), P99: took[len(took)*99/100].Seconds(),
	})
}

// resolve is one client until then.
func resolve(ctx context.Context, server string, first int, until time.Time) (took []time.Duration, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(until.Add(2 * time.Second)); err != nil {
		return nil, err
	}
	buf := make([]byte, 1232)
	for i := first; time.Now().Before(until) && ctx.Err() == nil; i++ {
		q := new(dns.Msg)
		want := dns.RcodeSuccess
		switch name := fmt.Sprintf("name-%d.default.svc.cluster.local.", i%named); i % 4 {
		case 0, 1:
			q.SetQuestion(name, dns.TypeA)
		case 2:
			q.SetQuestion(name, dns.TypeAAAA)
		default:
			q.SetQuestion("no-"+name, dns.TypeA)
			want = dns.RcodeNameError
		}
		q.SetEdns0(1232, false)
		packet, err := q.Pack()
		if err != nil {
			return nil, err
		}
		asked := time.Now()
		if _, err := conn.Write(packet); err != nil {
			return nil, err
		}
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(asked))
		var got dns.Msg
		if err := got.Unpack(buf[:n]); err != nil || got.Id != q.Id || got.Rcode != want || (len(got.Answer) > 0) != (i%4 < 2) {
			return nil, fmt.Errorf("asked for %s, answered %v: %w", q.Question[0].String(), &got, errors.Join(err, errors.New("not what the zone says")))
		}
	}
	return took, nil
}
