package stream

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/memory"
)

type onePod struct{ id, address string }

func (p onePod) Has(_, pod string) bool { return pod == "a" }

func (p onePod) Container(_, pod, _ string, _ bool) (Container, error) {
	if pod != "a" {
		return Container{}, &Error{http.StatusNotFound, "no such pod"}
	}
	return Container{ID: p.id, Running: true}, nil
}

func (p onePod) Dial(ctx context.Context, _, _ string, _ int32) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", p.address)
}

func startServer(t *testing.T, address string) string {
	machine := memory.New(memory.Config{
		Images: []runtime.Image{{ID: "sha256:1", Names: []string{"localhost/i:1"}}},
		Exec: func(_ context.Context, _ runtime.ContainerSpec, o runtime.ExecOptions) (int, error) {
			in, err := io.ReadAll(o.Stdin)
			if err != nil {
				return 0, err
			}
			_, err = io.WriteString(o.Stdout, strings.ToUpper(string(in)))
			return 3, err
		},
	})
	t.Cleanup(machine.Close)
	rt, ctx := machine.Runtime("test"), context.Background()
	sandbox, err := rt.RunSandbox(ctx, runtime.SandboxSpec{Name: "s"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := rt.CreateContainer(ctx, sandbox.ID, runtime.ContainerSpec{Name: "c", Image: "localhost/i:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := rt.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(Handler(onePod{id, address}, rt, slog.New(slog.NewTextHandler(t.Output(), nil))))
	t.Cleanup(server.Close)
	return server.URL
}

func TestExec(t *testing.T) {
	base := startServer(t, "")
	for _, tt := range []struct {
		name string
		make func(*rest.Config, string, *url.URL) (remotecommand.Executor, error)
	}{
		{"SPDY", remotecommand.NewSPDYExecutor},
		{"WebSocket", func(c *rest.Config, _ string, u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(c, "GET", u.String())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(base + "/exec/default/a/c?command=upper&input=1&output=1&error=1&stdin=true")
			if err != nil {
				t.Fatal(err)
			}
			executor, err := tt.make(&rest.Config{Host: base}, "POST", u)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			var out, errOut bytes.Buffer
			err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("shout"), Stdout: &out, Stderr: &errOut})
			if out.String() != "SHOUT" || err == nil || err.Error() != "command terminated with exit code 3" {
				t.Errorf("%q %q %v", out.String(), errOut.String(), err)
			}
		})
	}
}

func TestPortForward(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "from the pod") }))
	defer backend.Close()
	base := startServer(t, backend.Listener.Addr().String())
	u, err := url.Parse(base + "/portForward/default/a")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: base})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forward, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forward.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	ports, err := forward.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + net.JoinHostPort("127.0.0.1", itoa(ports[0].Local)))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "from the pod" {
		t.Errorf("%q %v", body, err)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func itoa(port uint16) string {
	u := net.TCPAddr{Port: int(port)}
	_, s, _ := net.SplitHostPort(u.String())
	return s
}
