package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// rebindEvery is how often a taken port is tried again.
	rebindEvery = 5 * time.Second
	// drain is how long requests under way, and upgraded connections, may take when the ports are closed.
	drain = 10 * time.Second
	// maxClients bounds the connections of a port; more wait.
	maxClients = 8192
)

// door is one open port.
type door struct {
	port    uint16
	tls     *tls.Config // nil: none
	handler http.Handler
	logger  *slog.Logger
	opened  func(port uint16, open bool)
}

// serve opens the port, again and again while somebody else has it, and serves until ctx
// ends. That it cannot be opened is said and stops nothing else.
func (d *door) serve(ctx context.Context) {
	for told := ""; ctx.Err() == nil; {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", ":"+strconv.Itoa(int(d.port)))
		if err == nil {
			told = ""
			d.opened(d.port, true)
			err = d.accept(ctx, netutil.LimitListener(l, maxClients))
			d.opened(d.port, false)
		}
		if ctx.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			d.logger.Error("this peer does not serve Ingresses on this port, trying again", "port", d.port, "error", err, "cure", cure(err, d.port))
		}
		select {
		case <-ctx.Done():
		case <-time.After(rebindEvery):
		}
	}
}

func cure(err error, port uint16) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("see who has it with `ss -lntp sport = :%d` and stop it, or set another port with ingress-http or ingress-https (0 turns it off)", port)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "run as root or give the binary CAP_NET_BIND_SERVICE"
	}
	return "set another port with ingress-http or ingress-https (0 turns it off)"
}

func (d *door) accept(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: d.handler, TLSConfig: d.tls, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(d.logger.Handler(), slog.LevelDebug),
	}
	// The server forgets connections that are upgraded, as WebSockets are.
	var clients conns
	l = listener{l, &clients}
	ended := make(chan error, 1)
	go func() {
		if d.tls != nil {
			ended <- srv.ServeTLS(l, "", "")
		} else {
			ended <- srv.Serve(l)
		}
	}()
	d.logger.Info("Ingresses are served", "port", d.port, "tls", d.tls != nil)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := srv.Shutdown(grace)
	if err != nil {
		err = srv.Close()
	}
	<-ended
	clients.end(grace)
	return err
}
