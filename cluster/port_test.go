package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

// startPort runs a port on loopback until the test ends.
func startPort(t *testing.T, id *identity.Identity, cfg PortConfig) *Port {
	t.Helper()
	cfg.Listen, cfg.Identity, cfg.Log = "127.0.0.1:0", id, testLog(t)
	p, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("port: %v", err)
		}
	})
	return p
}

func serveAPI(t *testing.T, p *Port, h http.Handler) {
	t.Helper()
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(p.API()); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() { srv.Close(); <-done })
}

// echo answers each connection of a protocol with the peer's name, and stays.
func echo(t *testing.T, l net.Listener) {
	t.Helper()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, PeerName(c)+"\n")
				io.Copy(io.Discard, c)
			}()
		}
	}()
}

func readLine(c net.Conn) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

func TestPortRefuses(t *testing.T) {
	id := newIdentity(t, "one")
	good, removed := joinIdentity(t, id, "good"), joinIdentity(t, id, "removed")
	foreign := newIdentity(t, "good")
	userCert, userKey, err := id.IssueClient("admin", []string{"system:masters"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	user, err := tls.X509KeyPair(userCert, userKey)
	if err != nil {
		t.Fatal(err)
	}
	p := startPort(t, id, PortConfig{Allowed: func(_, fp string) bool { return fp != removed.Fingerprint() }})
	echo(t, p.Listener(ProtocolRaft))
	echo(t, p.Listener(ProtocolStore))
	for _, tc := range []struct {
		name  string
		cert  *tls.Certificate
		proto string
		max   uint16
		want  string // "" is a refusal
	}{
		{"a peer, raft", good.Certificate(), ProtocolRaft, 0, "good"},
		{"a peer, store", good.Certificate(), ProtocolStore, 0, "good"},
		{"no certificate", nil, ProtocolRaft, 0, ""},
		{"foreign CA, same name", foreign.Certificate(), ProtocolRaft, 0, ""},
		{"an administrator", &user, ProtocolRaft, 0, ""},
		{"a removed peer", removed.Certificate(), ProtocolStore, 0, ""},
		{"unknown protocol", good.Certificate(), "rookery-nothing", 0, ""},
		{"TLS 1.2", good.Certificate(), ProtocolRaft, tls.VersionTLS12, ""},
		{"TLS 1.1", nil, "http/1.1", tls.VersionTLS11, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{tc.proto}, MaxVersion: tc.max, MinVersion: tls.VersionTLS10}
			if tc.cert != nil {
				conf.Certificates = []tls.Certificate{*tc.cert}
			}
			c, err := tls.Dial("tcp", p.Addr().String(), conf)
			got := ""
			if err == nil { // in TLS 1.3 the refusal comes with the first read
				defer c.Close()
				got, err = readLine(c)
			}
			if got != tc.want || (tc.want == "") != (err != nil) {
				t.Errorf("answer %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestPortSurvivesGarbage(t *testing.T) {
	id := newIdentity(t, "one")
	p := startPort(t, id, PortConfig{})
	serveAPI(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", "\x00", strings.Repeat("x", 1<<16)} {
		c, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, text) // may fail: the other side hangs up
		defer c.Close()
	}
	// As many idle connections as one client may have, and more: they are held to it.
	for range maxHandshakesFrom + 8 {
		c, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	// Handshakes end after their time, and then there is place again.
	eventually(t, handshakeTimeout+5*time.Second, "an honest client is served", func() bool {
		return get(t, p, id, "http/1.1") == "HTTP/1.1"
	})
}

// get asks the API over one protocol and returns the body.
func get(t *testing.T, p *Port, id *identity.Identity, proto string) string {
	t.Helper()
	conf := &tls.Config{RootCAs: id.Pool()} // an ordinary client, which does look at names and dates
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: proto == "h2"}
	switch proto {
	case "h2", "http/1.1":
		conf.NextProtos = []string{proto}
	}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("https://" + p.Addr().String())
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func TestAPIOverEveryProtocol(t *testing.T) {
	id := newIdentity(t, "one")
	p := startPort(t, id, PortConfig{})
	serveAPI(t, p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	for proto, want := range map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1", "": "HTTP/1.1"} {
		if got := get(t, p, id, proto); got != want {
			t.Errorf("ALPN %q: %s, want %s", proto, got, want)
		}
	}
}

func TestDial(t *testing.T) {
	one := newIdentity(t, "one")
	two := joinIdentity(t, one, "two")
	var removed atomic.Value
	removed.Store("")
	allowed := func(_, fp string) bool { return fp != removed.Load() }
	server := startPort(t, two, PortConfig{Allowed: allowed})
	echo(t, server.Listener(ProtocolRaft))
	serveAPI(t, server, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := server.VerifyPeer(r.TLS)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		io.WriteString(w, r.Proto+" "+name)
	}))
	client := startPort(t, one, PortConfig{Resolve: func(name string) []string {
		if name == "nowhere" {
			return nil
		}
		return []string{server.Addr().String()} // whoever is asked for
	}})
	c, err := client.Dial(t.Context(), "two", ProtocolRaft)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := readLine(c); got != "one" {
		t.Errorf("the server saw %q, %v", got, err)
	}
	if _, err := client.Dial(t.Context(), "three", ProtocolRaft); !errors.Is(err, identity.ErrNotPeer) {
		t.Errorf("dialling three and reaching two: %v", err)
	}
	if _, err := client.Dial(t.Context(), "nowhere", ProtocolRaft); !errors.Is(err, ErrUnresolved) {
		t.Errorf("dialling nowhere: %v", err)
	}

	tr := client.HTTPTransport("two")
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get("https://two/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if string(body) != "HTTP/1.1 one" {
		t.Errorf("between peers: %q, %v", body, err)
	}

	removed.Store(one.Fingerprint())
	server.Recheck()
	if _, err := readLine(c); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection of a removed peer is still open: %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	id := newIdentity(t, "one")
	p := startPort(t, id, PortConfig{})
	_, err := Listen(PortConfig{Listen: p.Addr().String(), Identity: id, Log: testLog(t)})
	if err == nil || !strings.Contains(err.Error(), "in use by another program") {
		t.Errorf("Listen on a taken port: %v", err)
	}
}
