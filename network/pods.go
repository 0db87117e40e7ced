package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/network/hostports"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Attach gives the pod whose sandbox process is pid its interface, and returns the
// pod's addresses, one of each family, the cluster's first family first. Those of ports that have a HostPort are published on this machine;
// one that is taken is an error. It is idempotent: a pod that is attached keeps what it
// has, and one whose sandbox is new gets the same address again. Calls for different
// pods run in parallel. It waits for Ready.
func (n *Network) Attach(ctx context.Context, uid string, pid int, ports []corev1.ContainerPort) ([]netip.Addr, error) {
	if err := n.wait(ctx); err != nil {
		return nil, err
	}
	defer n.attaching.lock(uid)()
	addrs, err := n.pool.Allocate(uid)
	if err != nil {
		return nil, fmt.Errorf("attach pod %s: %w", uid, err)
	}
	published := hostports.Of(ports)
	if _, err := n.ports.Publish(uid, published); err != nil {
		return nil, fmt.Errorf("attach pod %s: %w", uid, err)
	}
	// The rules first: a pod never runs with an address that is not checked.
	if err := n.syncPods(ctx); err != nil {
		return nil, fmt.Errorf("attach pod %s: %w", uid, err)
	}
	if n.cfg.Admission != nil {
		if err := n.cfg.Admission.Admit(ctx); err != nil {
			return nil, fmt.Errorf("attach pod %s: %w", uid, err)
		}
	}
	c := cable{device: deviceName(uid), addrs: addrs, own: n.own(), mtu: int(n.mtu.Load()), loopback: len(published) > 0}
	if err := c.plug(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		return nil, fmt.Errorf("attach pod %s: %w", uid, err)
	}
	return addrs, nil
}

// Detach takes the pod's interface away and frees its address. Idempotent; the
// sandbox may be gone already. It waits for Ready.
func (n *Network) Detach(ctx context.Context, uid string) error {
	if err := n.wait(ctx); err != nil {
		return err
	}
	defer n.attaching.lock(uid)()
	return n.detach(ctx, uid)
}

func (n *Network) detach(ctx context.Context, uids ...string) error {
	for _, uid := range uids {
		if err := overlay.DeleteLink(deviceName(uid)); err != nil {
			return fmt.Errorf("detach pod %s: %w", uid, err)
		}
	}
	if _, err := n.ports.Release(uids...); err != nil {
		return fmt.Errorf("detach %d pods: %w", len(uids), err)
	}
	if err := n.pool.Release(uids...); err != nil {
		return fmt.Errorf("detach %d pods: %w", len(uids), err)
	}
	if err := n.syncPods(ctx); err != nil {
		return fmt.Errorf("detach %d pods: %w", len(uids), err)
	}
	return nil
}

// Reconcile detaches every pod that is not among uids. Call it once after a
// start, with the pods that exist, before new ones are attached. It waits for Ready.
func (n *Network) Reconcile(ctx context.Context, uids []string) error {
	if err := n.wait(ctx); err != nil {
		return err
	}
	keep, keepDevice := map[string]bool{}, map[string]bool{}
	for _, uid := range uids {
		keep[uid], keepDevice[deviceName(uid)] = true, true
	}
	var gone []string
	for uid := range n.pool.All() {
		if !keep[uid] {
			gone = append(gone, uid)
		}
	}
	var errs []error
	if len(gone) > 0 {
		errs = append(errs, n.detach(ctx, gone...))
	}
	links, err := overlay.Dump(netlink.LinkList)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list devices: %w", err))...)
	}
	for _, link := range links { // of pods that are not even in ipam.json
		name := link.Attrs().Name
		if link.Type() == "veth" && strings.HasPrefix(name, devicePrefix) && !keepDevice[name] {
			errs = append(errs, overlay.DeleteLink(name))
		}
	}
	return errors.Join(errs...)
}

// keyedMutex lets calls for one pod wait for each other and for no one else.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*heldKey
}

type heldKey struct {
	sync.Mutex
	users int
}

func (k *keyedMutex) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*heldKey{}
	}
	h := k.held[key]
	if h == nil {
		h = &heldKey{}
		k.held[key] = h
	}
	h.users++
	k.mu.Unlock()
	h.Lock()
	return func() {
		h.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(k.held, key)
		}
	}
}
