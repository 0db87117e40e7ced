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
	r := report{Pods: map[string]int{}, Errors: map[string]int{}}
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

// pull reads a URL over and over on one connection and prints how fast that went.
func pull(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("pull", flag.ContinueOnError)
	length := f.Duration("for", 3*time.Second, "for how long")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("usage: hello pull [-for D] URL")
	}
	var total int64
	began := time.Now()
	for time.Since(began) < *length && ctx.Err() == nil {
		resp, err := http.Get(f.Arg(0))
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, resp.Body)
		total += n
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
	}
	return json.NewEncoder(out).Encode(map[string]float64{"bytesPerSecond": float64(total) / time.Since(began).Seconds()})
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
