package apiserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

func TestHealth(t *testing.T) {
	var broken atomic.Bool
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) {
		c.Components = []apiserver.Component{{Name: "podman", Check: func(*http.Request) error {
			if broken.Load() {
				return errors.New("it does not answer")
			}
			return nil
		}}}
	})
	ask := func(path, query string, well bool, want string) {
		t.Helper()
		r := p.admin.CoreV1().RESTClient().Get().AbsPath(path)
		if k, v, ok := strings.Cut(query, "="); ok {
			r = r.Param(k, v)
		}
		body, err := r.Do(t.Context()).Raw()
		if (err == nil) != well || !strings.Contains(string(body)+errorText(err), want) {
			t.Errorf("%s?%s: %s %v, want %v %s", path, query, body, err, well, want)
		}
	}
	ask("/livez", "", true, "ok")
	ask("/readyz", "verbose=1", true, "[+]informer-sync ok")
	ask("/readyz/informer-sync", "", true, "ok")
	ask("/healthz", "verbose=1", true, "[+]podman ok")
	broken.Store(true)
	ask("/healthz", "", false, "[-]podman failed")
	ask("/healthz/podman", "", false, "it does not answer")
	ask("/healthz", "exclude=podman", true, "ok")
	ask("/readyz", "", true, "ok")
	ask("/livez", "", true, "ok")
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A client that sends a byte now and then does not hold a connection for ever, whoever it
// is and whatever it asks for.
func TestSlowClient(t *testing.T) {
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) { c.RequestTimeout = time.Second })
	host := p.listen(t).Host
	for name, c := range map[string]struct {
		known   bool
		request string
	}{
		"a write":             {true, "POST /api/v1/namespaces/default/configmaps"},
		"a watch":             {true, "GET /api/v1/configmaps?watch=1"},
		"a write of a nobody": {false, "POST /api/v1/namespaces/default/configmaps"},
		"a watch of a nobody": {false, "GET /api/v1/configmaps?watch=1"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := stranger(t, host)
			if c.known {
				conn.Close()
				conn = p.connect(t, host)
			}
			defer conn.Close()
			begin := time.Now()
			var err error
			if _, err := io.WriteString(conn, c.request+" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(begin.Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = conn.Read(make([]byte, 4096))
			}
			if d := time.Since(begin); d < 900*time.Millisecond || d > 9*time.Second {
				t.Errorf("cut off after %v: %v, want about a second", d, err)
			}
		})
	}
}

// stranger connects without credentials.
func stranger(t *testing.T, url string) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// A watch ends when its client is gone, also when that has sent a body that nobody reads.
func TestWatchWithABodyEndsWithItsClient(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ended := make(chan struct{}, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.Handler().ServeHTTP(w, r)
		ended <- struct{}{}
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(func() { p.stop(); server.Close() })

	conn := p.connect(t, server.URL)
	defer conn.Close()
	body := strings.Repeat("x", 400_000) // net/http itself reads a quarter of a megabyte
	if _, err := fmt.Fprintf(conn, "GET /api/v1/configmaps?watch=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	conn.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it goes on without its client")
	}
}

// connect opens a connection of an administrator on which a test can write what it likes.
func (p *peer) connect(t *testing.T, host string) *tls.Conn {
	t.Helper()
	cert := p.ca.sign(t, time.Now().Add(time.Hour), "admin", "system:masters")
	pair, err := tls.X509KeyPair(cert.CertData, cert.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(host, "https://"), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// A store that ends before the API, as in a crash, is no failure of the API.
func TestStoreEndsFirst(t *testing.T) {
	store := raftstore.NewMemory()
	p := start(t, store)
	ended, end := context.WithCancel(t.Context())
	end()
	if err := store.Run(ended); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for whoever watches to hear of it
	p.stop()                           // reports what Run returned
}
