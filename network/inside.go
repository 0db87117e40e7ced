package network

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Dial connects to an address and port, no name, as [net.Dialer] does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Inside attaches an empty network namespace as if it were the sandbox of a pod with that uid,
// calls f with what connects from there, and takes it away again. The uid is nobody else's. What a
// daemon that ended meanwhile has left, [Network.Reconcile] takes away. It waits for Ready.
func (n *Network) Inside(ctx context.Context, uid string, f func(Dial)) (err error) {
	ns, tid, leave, err := namespace()
	if err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	defer leave()
	defer ns.Close()
	defer func() { err = errors.Join(err, n.Detach(context.WithoutCancel(ctx), uid)) }()
	if _, err := n.Attach(ctx, uid, tid, nil); err != nil {
		return err
	}
	f(dialIn(ns))
	return nil
}

// namespace makes one, which has a thread until leave is called.
func namespace() (ns netns.NsHandle, tid int, leave func(), err error) {
	made, left := make(chan error), make(chan struct{})
	go onOwnThread(func() {
		tid = unix.Gettid()
		var err error
		ns, err = netns.New()
		made <- err
		<-left
	})
	leave = func() { close(left) }
	if err := <-made; err != nil {
		leave()
		return netns.None(), 0, nil, err
	}
	return ns, tid, leave, nil
}

// dialIn makes sockets in another network namespace.
func dialIn(ns netns.NsHandle) Dial {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = inNamespace(ns, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}
