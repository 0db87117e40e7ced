package services

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A port that somebody else has is said once and answered when it is free; so is one whose
// server has ended.
func TestHealthPortComesBack(t *testing.T) {
	taken, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	var log bytes.Buffer
	h := healthPorts{log: slog.New(slog.NewTextHandler(&log, nil)), network: "tcp4", open: map[uint16]*healthPort{}, died: func() {}}
	defer h.close()
	want := map[uint16]health{port: {LocalEndpoints: 1}}
	for range 3 {
		if h.set(want) {
			t.Fatal("a taken port is said to be answered")
		}
	}
	if n := strings.Count(log.String(), "is not answered"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, &log)
	}
	answers := func() {
		t.Helper()
		if !h.set(want) {
			t.Fatalf("the port is not answered:\n%s", &log)
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("got %s", resp.Status)
		}
	}
	taken.Close()
	answers()
	was := h.open[port]
	was.close(h.log)
	for end := time.Now().Add(10 * time.Second); !was.dead.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a server that was closed goes on")
		}
	}
	answers()
}
