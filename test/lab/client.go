package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// API returns a client of the first peer's API that speaks from the machine beside
// the peers. It has no rate limit: kubectl in a host costs half a second a call.
func (l *Lab) API() (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(l.HostDir(Client), "admin.kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("read the client's kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Timeout = -1, time.Minute
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.DialFrom(ctx, Client, network, address)
	}
	return kubernetes.NewForConfig(cfg)
}

// DialFrom connects from a host's network namespace to an address that is no name.
func (l *Lab) DialFrom(ctx context.Context, host, network, address string) (conn net.Conn, err error) {
	err = l.inNetwork(host, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// ListenPacketOn listens in a host's network namespace, for a server of this process that is
// on that machine for all others.
func (l *Lab) ListenPacketOn(ctx context.Context, host, network, address string) (conn net.PacketConn, err error) {
	err = l.inNetwork(host, func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(ctx, network, address)
		return err
	})
	return conn, err
}

// inNetwork runs what in a host's network namespace, in which sockets stay that it opens.
func (l *Lab) inNetwork(host string, what func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, in the other namespace as it is
		ns, err := os.Open("/run/netns/" + l.netns(host))
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			err = what()
		}
		done <- err
	}()
	return <-done
}
