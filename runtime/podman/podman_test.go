package podman

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/runtimetest"
)

func TestConformance(t *testing.T) {
	requirePodman(t)
	program := buildGuest(t)
	s := startService(t)
	load(t, s, guestArchive(t, guestImage, program))
	first := newRuntime(t, s.socket, "info")
	if err := first.Prepare(t.Context()); err != nil { // or a test of events hears of it
		t.Fatal(err)
	}
	info, err := first.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckVersion(info); err != nil {
		t.Error(err)
	}
	if info.StoreFree <= 0 {
		t.Errorf("info is %+v", info)
	}
	other := map[string]string{"wrapped": s.second(t, "wrapped")}
	t.Run("suite", func(t *testing.T) {
		runtimetest.Run(t, runtimetest.Subject{
			Connect: func(t *testing.T, owner string) runtime.Runtime {
				return newRuntimeWith(t, Config{Socket: s.socket, Owner: owner, Handlers: other})
			},
			Image:     guestImage,
			Program:   guestProgram,
			Archive:   guestArchive(t, "localhost/loaded:1", program),
			Removable: guestArchive(t, "localhost/removable:1", program),
			Handler:   "wrapped",
			Ran: func(id string) (bool, error) {
				calls, err := os.ReadFile(s.dir + "/wrapped.log")
				return strings.Contains(string(calls), "start "+id+"\n"), err
			},
			Processes: true,
		})
	})
}

// TestPrepareClearsUp starts where a daemon was killed between making the pod that
// builds the image of infra containers and removing it.
func TestPrepareClearsUp(t *testing.T) {
	requirePodman(t)
	s := startService(t)
	r := newRuntime(t, s.socket, "a")
	if _, err := r.createPod(t.Context(), runtime.SandboxSpec{Name: "rookery-prepare-a"}); err != nil {
		t.Fatal(err)
	}
	if err := r.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, err := r.List(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestUnavailable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	r := newRuntime(t, socket, "a")
	_, err := r.List(t.Context(), nil)
	if !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "systemctl enable --now podman.socket") {
		t.Errorf("error is %v", err)
	}
	_, err = r.Exec(t.Context(), "id", runtime.ExecOptions{Command: []string{"a"}})
	if !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("exec: %v", err)
	}
	err = r.Events(t.Context(), nil, nil)
	if !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("events: %v", err)
	}
}

// TestHang calls an engine that accepts connections and never answers.
func TestHang(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "hang.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := newRuntime(t, socket, "a")
	for name, f := range map[string]func(context.Context) error{
		"info": func(ctx context.Context) error { _, err := r.Info(ctx); return err },
		"ping": r.Ping,
		"list": func(ctx context.Context) error { _, err := r.List(ctx, nil); return err },
		"run": func(ctx context.Context) error {
			_, err := r.RunSandbox(ctx, runtime.SandboxSpec{Name: "a"})
			return err
		},
		"stop":   func(ctx context.Context) error { return r.StopContainer(ctx, "a", time.Second) },
		"remove": func(ctx context.Context) error { return r.RemoveSandbox(ctx, "a") },
		"exec": func(ctx context.Context) error {
			_, err := r.Exec(ctx, "a", runtime.ExecOptions{Command: []string{"a"}})
			return err
		},
		"load": func(ctx context.Context) error { _, err := r.LoadImage(ctx, strings.NewReader("x")); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			began := time.Now()
			if err := f(ctx); !errors.Is(err, context.DeadlineExceeded) || name != "exec" && !strings.Contains(err.Error(), "systemctl restart podman.service") {
				t.Errorf("error is %v", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("returned after %s", took)
			}
		})
	}
}

// An engine that greets and then answers nothing, as Podman does whose database is locked.
func TestPingGetsMoreThanAGreeting(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "deaf.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	end := make(chan struct{})
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/_ping") {
			w.Header().Set("Libpod-API-Version", "4.3.1")
			return
		}
		select {
		case asked <- r.URL.Path:
		default:
		}
		<-end
	})}
	go srv.Serve(l)
	t.Cleanup(func() { close(end); srv.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := newRuntime(t, socket, "a").Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	select {
	case <-asked:
	default:
		t.Error("nothing but the greeting was asked for")
	}
}

func TestCheckVersion(t *testing.T) {
	for version, ok := range map[string]bool{"4.3.1": true, "4.3.0": true, "4.9.5-rhel": true, "5.2.0": true, "4.2.9": false, "3.4.4": false, "": false, "new": false} {
		if err := CheckVersion(runtime.Info{Version: version}); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestLacks(t *testing.T) {
	for version, want := range map[string]string{
		"4.3.1": "podman system check", "4.9.5-rhel": "podman system check", "5.1.9": "podman system check",
		"5.2.0": "", "5.2.0-rhel": "", "5.8.1": "", "6.0.0": "newer than rookery was made for", "4.2.0": "", "new": "",
	} {
		have := strings.Join(Lacks(runtime.Info{Version: version}), "; ")
		if want == "" && have != "" || !strings.Contains(have, want) {
			t.Errorf("%q lacks %q, want %q", version, have, want)
		}
	}
}
