package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// countsFile is shared by the application and its sidecar on a volume.
const countsFile = "counts.json"

type tally struct {
	Pod      string `json:"pod"`
	Requests int64  `json:"requests"`
}

type app struct {
	pod, peer, version, greeting, secret, dir string
	requests                                  atomic.Int64
}

func newApp(env func(string) string) *app {
	a := &app{pod: env("POD_NAME"), peer: env("PEER_NAME"), version: env("VERSION"), greeting: env("GREETING"), dir: sharedDir(env)}
	if s := env("PASSWORD"); s != "" {
		// Enough to see that the Secret arrived, without telling it.
		a.secret = fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:8]
	}
	return a
}

func sharedDir(env func(string) string) string {
	if d := env("SHARED_DIR"); d != "" {
		return d
	}
	return "/shared"
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /bulk", bulk)
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		fmt.Fprintln(w, host)
	})
	mux.HandleFunc("GET /echo", echo)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		a.requests.Add(1)
		fmt.Fprintf(w, "%s from pod %s on peer %s (version %s, secret %s)\n", a.greeting, a.pod, a.peer, a.version, a.secret)
	})
	return mux
}

// echo leaves HTTP for the protocol that is asked for, whatever it is, and sends back what comes.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		http.Error(w, "ask with an Upgrade header", http.StatusUpgradeRequired)
		return
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
	if _, err := io.Copy(conn, buf); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
	}
}

// record writes the counts for the sidecar, at most once each interval and only
// when they changed, until ctx ends.
func (a *app) record(ctx context.Context, every time.Duration) {
	var last int64 = -1
	for tick := time.NewTicker(every); ; {
		if n := a.requests.Load(); n != last {
			if err := a.write(n); err != nil {
				fmt.Fprintln(os.Stderr, "record counts:", err)
			} else {
				last = n
			}
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

func (a *app) write(n int64) error {
	data, err := json.Marshal(tally{Pod: a.pod, Requests: n})
	if err != nil {
		return err
	}
	tmp := filepath.Join(a.dir, countsFile+".new")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(a.dir, countsFile))
}

// counts is the sidecar: the application's access counts, as JSON and for Prometheus.
func counts(dir string) http.Handler {
	read := func(w http.ResponseWriter) (tally, []byte, bool) {
		data, err := os.ReadFile(filepath.Join(dir, countsFile))
		var t tally
		if err == nil {
			err = json.Unmarshal(data, &t)
		}
		if err != nil {
			http.Error(w, "the application has not recorded any counts yet: "+err.Error(), http.StatusServiceUnavailable)
		}
		return t, data, err == nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, _ *http.Request) {
		if _, data, ok := read(w); ok {
			w.Header().Set("Content-Type", "application/json")
			w.Write(append(data, '\n'))
		}
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		if t, _, ok := read(w); ok {
			fmt.Fprintf(w, "# TYPE hello_requests_total counter\nhello_requests_total{pod=%q} %d\n", t.Pod, t.Requests)
		}
	})
	return mux
}
