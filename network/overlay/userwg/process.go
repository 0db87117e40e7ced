// Package userwg is WireGuard for kernels that have none: wireguard-go on a TUN device, in a
// process of its own. The process outlives the daemon that started it, as the kernel's WireGuard
// would, so packets pass while the daemon is away, and the next daemon takes it over.
//
// [Run] is that process, [Open] starts one or finds the one that runs, and the methods of
// [Process] tell it who the peers are. They talk over a socket in a directory that only root
// can enter. All must be in one network namespace and of one program file: after an update
// Open ends the old process and starts another.
package userwg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/rpc"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Settings are what a process is started with, and keeps.
type Settings struct {
	Dir    string      // of the socket, which only root can enter
	Device string      // name of the TUN device
	Key    wgtypes.Key // private
	Port   int         // UDP
	MTU    int         // of the device at most; it may become less
}

// socket is where the process listens. The name is short however long that of the directory,
// and holds while dir is open.
func (s Settings) socket() (name string, dir *os.File, err error) {
	if dir, err = os.Open(s.Dir); err != nil {
		return "", nil, fmt.Errorf("open the directory of WireGuard's socket: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/wireguard.sock", dir.Fd()), dir, nil
}

// About is what a process says of itself.
type About struct {
	Settings
	Started time.Time
}

// started is the one line that a process writes when it is up, or cannot be.
type started struct{ Error string }

// Run is the process. It reads its [Settings] from in, writes on out that it is up, or why not,
// closes both, and returns when it is told to end, when ctx ends or when the device is taken away.
func Run(ctx context.Context, in io.ReadCloser, out io.WriteCloser, log *slog.Logger) error {
	w, listener, about, err := begin(in, log)
	var word started
	if err != nil {
		word.Error = err.Error()
	}
	if err := errors.Join(err, json.NewEncoder(out).Encode(word), in.Close(), out.Close()); err != nil {
		if w != nil {
			w.greeter.close()
			listener.Close()
		}
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	server := rpc.NewServer()
	if err := server.RegisterName(service, &Server{w: *w, about: about, end: end}); err != nil {
		return fmt.Errorf("offer WireGuard's service: %w", err)
	}
	go server.Accept(listener) // ends with the process
	select {
	case <-ctx.Done():
	case <-w.greeter.dev.Wait():
		if ctx.Err() == nil {
			log.Info("the device was taken away", "device", about.Device)
		}
	}
	w.greeter.close()
	return listener.Close()
}

// begin brings the device up, without an address and peers.
func begin(in io.Reader, log *slog.Logger) (*wireGuard, net.Listener, About, error) {
	about := About{Started: time.Now()}
	if err := json.NewDecoder(in).Decode(&about.Settings); err != nil {
		return nil, nil, about, fmt.Errorf("read what WireGuard is to be: %w", err)
	}
	if left, err := netlink.LinkByName(about.Device); err == nil { // of another kind, or just being torn down
		if err := netlink.LinkDel(left); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, nil, about, fmt.Errorf("remove device %s: %w", about.Device, err)
		}
	}
	var t tun.Device
	err := patiently(unix.EBUSY, func() (err error) {
		t, err = tun.CreateTUN(about.Device, about.MTU)
		return err
	})
	if err != nil {
		return nil, nil, about, fmt.Errorf("create device %s: %w; is /dev/net/tun there and usable?", about.Device, err)
	}
	inside, outside := bounded(t, conn.NewDefaultBind(), about.MTU)
	g, err := newGreeter(inside, outside, about.Key, log)
	if err != nil {
		return nil, nil, about, err
	}
	if err := g.dev.IpcSet(fmt.Sprintf("listen_port=%d\n", about.Port)); err != nil {
		g.close()
		return nil, nil, about, fmt.Errorf("configure device %s: %w", about.Device, err)
	}
	if err := patiently(unix.EADDRINUSE, g.dev.Up); err != nil {
		g.close()
		return nil, nil, about, fmt.Errorf("listen on UDP port %d for WireGuard: %w", about.Port, err)
	}
	listener, err := listen(about.Settings)
	if err != nil {
		g.close()
		return nil, nil, about, err
	}
	return &wireGuard{g}, listener, about, nil
}

// patiently tries again for a moment what is refused because the kernel has not yet taken it from
// a process that was killed.
func patiently(refusal error, f func() error) error {
	const moment, pause = 3 * time.Second, 20 * time.Millisecond
	for until := time.Now().Add(moment); ; time.Sleep(pause) {
		if err := f(); !errors.Is(err, refusal) || time.Now().After(until) {
			return err
		}
	}
}

// listen replaces a socket that nobody listens on: one process at a time has the device.
func listen(s Settings) (net.Listener, error) {
	name, dir, err := s.socket()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of an earlier WireGuard: %w", err)
	}
	unix.Umask(0o077)
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the name is another directory's by then
	return l, nil
}

const service = "WireGuard"

// Server is what [Process] calls, by package net/rpc.
type Server struct {
	w     wireGuard
	about About
	end   context.CancelFunc
}

// About tells what the process is.
func (s *Server) About(_ struct{}, a *About) error { *a = s.about; return nil }

// Set makes a peer known, or known anew.
func (s *Server) Set(p Peer, _ *struct{}) error { return s.w.set(p) }

// Get tells the device's configuration.
func (s *Server) Get(_ struct{}, text *string) (err error) {
	*text, err = s.w.greeter.dev.IpcGet()
	return err
}

// InVain tells which peers have answered nothing.
func (s *Server) InVain(_ struct{}, peers *[]wgtypes.Key) (err error) {
	*peers, err = s.w.greeter.inVain()
	return err
}

// Remove forgets a peer.
func (s *Server) Remove(key wgtypes.Key, _ *struct{}) error { return s.w.remove(key) }

// Prune removes the peers that are not to be kept.
func (s *Server) Prune(keep []wgtypes.Key, _ *struct{}) error { return s.w.prune(keep) }

// End makes Run take the device away and return. The answer may be lost on the way.
func (s *Server) End(struct{}, *struct{}) error {
	s.end()
	return nil
}
