// Command hello is the sample application: a web server that says which pod and
// peer answered and what it was configured with, and its sidecar that serves how
// often it was asked. One static program, so that its image needs no base.
//
//	hello serve    the application, on :8080
//	hello counts   the sidecar, on :9090
//	hello get URL  fetch a URL and print it, for use with exec
//	hello load URL ask at a fixed rate and report what failed and who answered
//	hello pull URL read at full speed and report how fast that was
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// drain is how long the application still accepts connections after it was told
// to end: 2 s, in which every peer has taken it out of the Service.
const drain = 2 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		app := newApp(os.Getenv)
		go app.record(ctx, time.Second)
		return listen(ctx, ":8080", app.handler())
	case len(args) == 1 && args[0] == "counts":
		return listen(ctx, ":9090", counts(sharedDir(os.Getenv)))
	case len(args) == 2 && args[0] == "get":
		return get(ctx, args[1], os.Stdout)
	case len(args) > 1 && args[0] == "load":
		return load(ctx, args[1:], os.Stdout)
	case len(args) > 1 && args[0] == "pull":
		return pull(ctx, args[1:], os.Stdout)
	}
	return errors.New("usage: hello serve | counts | get URL | load URL | pull URL")
}

func listen(ctx context.Context, addr string, h http.Handler) error {
	srv := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	fmt.Println("listening on", addr)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	time.Sleep(drain)
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(grace)
}

func get(ctx context.Context, url string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return nil
}
