// Command probed is what the tests of probes and hooks ask: it serves HTTP on :8080, HTTPS
// on :8443 and gRPC health on :9090, and writes what it was asked to the file LOG.
//
// A path or service called NAME answers well while there is a file CTL/NAME, and /slow
// only after a minute.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	health "google.golang.org/grpc/health/grpc_health_v1"
)

type server struct {
	health.UnimplementedHealthServer
	ctl string
	log *log.Logger
}

func main() {
	out, err := os.OpenFile(os.Getenv("LOG"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	s := &server{ctl: os.Getenv("CTL"), log: log.New(out, "", 0)}
	ended := make(chan error)
	go func() { ended <- http.ListenAndServe(":8080", s) }()
	go func() { ended <- s.serveTLS(":8443") }()
	go func() { ended <- s.serveGRPC(":9090") }()
	log.Fatal(<-ended)
}

func (s *server) well(name string) bool {
	_, err := os.Stat(filepath.Join(s.ctl, filepath.Base(name)))
	return err == nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	s.log.Printf("%s %s host=%s x-probe=%s agent=%s", scheme, r.URL.Path, r.Host, r.Header.Get("X-Probe"), r.UserAgent())
	if r.URL.Path == "/slow" {
		select {
		case <-time.After(time.Minute):
		case <-r.Context().Done():
		}
	}
	if !s.well(r.URL.Path) {
		http.Error(w, "not well", http.StatusServiceUnavailable)
	}
}

// Check implements the health service.
func (s *server) Check(_ context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	s.log.Printf("grpc %s", r.Service)
	if s.well(r.Service) {
		return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_NOT_SERVING}, nil
}

func (s *server) serveGRPC(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	g := grpc.NewServer()
	health.RegisterHealthServer(g, s)
	return g.Serve(l)
}

// serveTLS has a certificate that nobody has reason to trust.
func (s *server) serveTLS(addr string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	srv := &http.Server{Addr: addr, Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}}
	return srv.ListenAndServeTLS("", "")
}
