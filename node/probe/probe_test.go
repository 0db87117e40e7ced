package probe

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A pod's first address may be IPv6; each kind of probe and a hook's request reach it.
func TestProbesOfEitherIPFamily(t *testing.T) {
	port := func(l net.Listener) int32 { return int32(l.Addr().(*net.TCPAddr).Port) }
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			listen := func() net.Listener {
				l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
				if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
					t.Skipf("this machine has no such address: %v", err)
				}
				if err != nil {
					t.Fatal(err)
				}
				return l
			}
			web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") }))
			web.Listener.Close()
			web.Listener = listen()
			web.Start()
			defer web.Close()
			rpc, at := grpc.NewServer(), listen()
			grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
			go rpc.Serve(at)
			defer rpc.Stop()

			p, c := NewProber(), &v1.Container{Name: "c"}
			get := &v1.HTTPGetAction{Port: intstr.FromInt32(port(web.Listener)), Scheme: v1.URISchemeHTTP, Path: "/"}
			for name, handler := range map[string]v1.ProbeHandler{
				"http": {HTTPGet: get},
				"tcp":  {TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt32(port(web.Listener))}},
				"grpc": {GRPC: &v1.GRPCAction{Port: port(at)}},
			} {
				spec := &v1.Probe{ProbeHandler: handler, TimeoutSeconds: 30}
				if ok, message := p.Once(context.Background(), c, ip, spec, nil); !ok {
					t.Errorf("%s at %s: %s", name, ip, message)
				}
			}
			if err := p.HTTPGet(t.Context(), c, ip, get); err != nil {
				t.Errorf("hook at %s: %v", ip, err)
			}
		})
	}
}
