package podman

import (
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Accounts are remembered for as long as there is their image.
func TestAccountsGoWithTheirImage(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Libpod-API-Version", "5.2.0")
		if strings.HasSuffix(r.URL.Path, "/images/json") {
			_, _ = io.WriteString(w, `[{"Id":"aaaa"}]`)
		}
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	defer server.Close()
	rt, err := New(Config{Socket: socket, Owner: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	rt.accounts[imageID("aaaa")], rt.accounts[imageID("bbbb")] = accounts{}, accounts{}
	if _, err := rt.Images(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := slices.Collect(maps.Keys(rt.accounts)); len(left) != 1 || left[0] != imageID("aaaa") {
		t.Errorf("those of %q are remembered", left)
	}
}
