package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"
)

// report is what `hello load` prints: how requests at a fixed rate fared.
type report struct {
	Sent   int            `json:"sent"`
	Failed int            `json:"failed"`
	Pods   map[string]int `json:"pods"` // answers by pod
	// FirstFailure and LastFailure are when failed requests were sent, zero if none failed.
	FirstFailure time.Time      `json:"firstFailure"`
	LastFailure  time.Time      `json:"lastFailure"`
	Errors       map[string]int `json:"errors,omitempty"`
	// FailedBySecond is how many failed of those sent in a second since 1970; seconds without are left out.
	FailedBySecond map[int64]int `json:"failedBySecond,omitempty"`
}

// load sends requests to a URL at a fixed rate, each on a connection of its own
// as a new client's would be, and prints a report.
func load(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	rate := f.Int("rate", 100, "requests a second")
	length := f.Duration("for", 10*time.Second, "for how long; an interrupt ends it sooner")
	timeout := f.Duration("timeout", 2*time.Second, "of one request")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || *rate < 1 || *rate > 10000 {
		return errors.New("usage: hello load [-rate N] [-for D] [-timeout D] URL")
	}
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	r := report{Pods: map[string]int{}, Errors: map[string]int{}, FailedBySecond: map[int64]int{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(*rate))
	defer tick.Stop()
	for ctx.Err() == nil {
		at := time.Now()
		r.Sent++
		all.Go(func() {
			pod, err := ask(client, f.Arg(0))
			mu.Lock()
			defer mu.Unlock()
			r.add(at, pod, err)
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	all.Wait()
	return json.NewEncoder(out).Encode(r)
}

func (r *report) add(at time.Time, pod string, err error) {
	if err == nil {
		r.Pods[pod]++
		return
	}
	r.Failed++
	r.Errors[err.Error()]++
	r.FailedBySecond[at.Unix()]++
	if r.FirstFailure.IsZero() || at.Before(r.FirstFailure) {
		r.FirstFailure = at
	}
	if at.After(r.LastFailure) {
		r.LastFailure = at
	}
}

var answered = regexp.MustCompile(`from pod (\S+) on`)

// ask returns the pod that answered.
func ask(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", errors.Unwrap(err) // without the URL, so that equal failures count as one
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	m := answered.FindSubmatch(body)
	if m == nil {
		return "", fmt.Errorf("unexpected answer %q", body)
	}
	return string(m[1]), nil
}

// pulled is what `hello pull` prints. Latencies are in seconds.
type pulled struct {
	BytesPerSecond    float64 `json:"bytesPerSecond"`
	RequestsPerSecond float64 `json:"requestsPerSecond"`
	Median            float64 `json:"median"`
	P99               float64 `json:"p99"`
}

// pull reads a URL over and over and prints how fast that went. Each client has one
// connection, or a new one for each request.
func pull(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("pull", flag.ContinueOnError)
	length := f.Duration("for", 3*time.Second, "for how long")
	clients := f.Int("clients", 1, "how many ask at once")
	fresh := f.Bool("fresh", false, "with a new connection for each request")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || *clients < 1 {
		return errors.New("usage: hello pull [-for D] [-clients N] [-fresh] URL")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: *fresh, MaxIdleConnsPerHost: *clients}}
	var mu sync.Mutex
	var total int64
	var took []time.Duration
	var failed error
	var all sync.WaitGroup
	began := time.Now()
	for range *clients {
		all.Go(func() {
			for time.Since(began) < *length && ctx.Err() == nil {
				asked := time.Now()
				n, err := read(client, f.Arg(0))
				mu.Lock()
				total, took, failed = total+n, append(took, time.Since(asked)), errors.Join(failed, err)
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	all.Wait()
	if failed != nil || len(took) == 0 {
		return errors.Join(failed, ctx.Err())
	}
	seconds := time.Since(began).Seconds()
	slices.Sort(took)
	return json.NewEncoder(out).Encode(pulled{
		BytesPerSecond: float64(total) / seconds, RequestsPerSecond: float64(len(took)) / seconds,
		Median: took[len(took)/2].Seconds(), P99: took[len(took)*99/100].Seconds(),
	})
}

func read(client *http.Client, url string) (int64, error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	return n, errors.Join(err, resp.Body.Close())
}

// bulk answers with 64 MiB, enough to tell a path's throughput.
func bulk(w http.ResponseWriter, _ *http.Request) {
	block := make([]byte, 256<<10)
	for range 256 {
		if _, err := w.Write(block); err != nil {
			return // the client has gone
		}
	}
}
