package userwg

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// answerWithin is how long a process may take for what is done in microseconds. One that
	// takes longer hangs, and is killed.
	answerWithin = 5 * time.Second
	// startWithin is how long one may take to come up, from a slow disk.
	startWithin = time.Minute
	// logFile in the directory has what the process says, and how it crashed; that of the one
	// before is kept under lastLogFile.
	logFile     = "wireguard.log"
	lastLogFile = "wireguard.log.1"
)

// Process is a running WireGuard. Its methods may be called concurrently.
type Process struct {
	client *rpc.Client
	pid    int
	// Started is when it did, by this machine's clock. MTU is the largest that it can have.
	Started time.Time
	MTU     int
	gone    chan struct{}
}

// Open returns the process that runs if it is what s wants (an MTU at most its own), else one
// that it starts with the command, instead of what may be there. It waits until the device is
// up, without peers if the process is new. The caller closes the Process, which lets it run on.
func Open(command []string, s Settings) (*Process, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of WireGuard's socket: %w", err)
	}
	p, about, err := find(s)
	if err != nil {
		return nil, err
	}
	if p != nil {
		same, err := sameProgram(p.pid)
		if err == nil && same && about.Device == s.Device && about.Key == s.Key && about.Port == s.Port && about.MTU >= s.MTU {
			return p, nil
		}
		if err := p.End(); err != nil {
			return nil, err
		}
	}
	if err := spawn(command, s); err != nil {
		return nil, err
	}
	p, _, err = find(s)
	if err == nil && p == nil {
		err = errors.New("it ended at once")
	}
	if err != nil {
		return nil, fmt.Errorf("reach the WireGuard that was started: %w; see %s", err, filepath.Join(s.Dir, logFile))
	}
	return p, nil
}

// find returns nil if there is no process that answers; one that hangs is killed.
func find(s Settings) (*Process, About, error) {
	name, dir, err := s.socket()
	if err != nil {
		return nil, About{}, err
	}
	conn, err := net.DialTimeout("unix", name, answerWithin)
	dir.Close()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, About{}, nil
	}
	if err != nil {
		return nil, About{}, fmt.Errorf("reach the process that is WireGuard: %w", err)
	}
	pid, err := peerOf(conn.(*net.UnixConn))
	if err != nil {
		return nil, About{}, errors.Join(err, conn.Close())
	}
	gone := make(chan struct{})
	p := &Process{client: rpc.NewClient(&watched{conn, gone}), pid: pid, gone: gone}
	var about About
	if err := p.call("About", struct{}{}, &about); err != nil {
		defer p.Close()
		kill := syscall.Kill(pid, syscall.SIGKILL) // of no use to anybody, whatever it is
		select {
		case <-p.gone:
			return nil, About{}, nil
		case <-time.After(answerWithin):
			return nil, About{}, fmt.Errorf("process %d has WireGuard's socket, and does not say what it is: %w; end it", pid, errors.Join(err, kill))
		}
	}
	p.Started, p.MTU = about.Started, about.MTU
	return p, about, nil
}

// watched closes gone when the other end has ended.
type watched struct {
	net.Conn
	gone chan struct{}
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		close(w.gone) // rpc reads no more
	}
	return n, err
}

// peerOf is the process at the other end of a socket.
func peerOf(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := errors.Join(raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}), credErr); err != nil {
		return 0, fmt.Errorf("find the process that is WireGuard: %w", err)
	}
	return int(cred.Pid), nil
}

// sameProgram tells whether a process runs the same file as this one: not after an update.
func sameProgram(pid int) (bool, error) {
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false, err
	}
	other, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false, err
	}
	return os.SameFile(own, other), nil
}

// spawn starts a process and waits until it is up.
func spawn(command []string, s Settings) error {
	path := filepath.Join(s.Dir, logFile)
	if err := os.Rename(path, filepath.Join(s.Dir, lastLogFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep the last words of WireGuard: %w", err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	defer log.Close()
	out, its, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	defer out.Close()
	defer its.Close()
	wanted, err := json.Marshal(s)
	if err != nil {
		return err
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Args[0] = os.Args[0] // what it is called where processes are listed
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(wanted), its, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends the daemon's session does not end it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	go cmd.Wait() // reaped, however it ends: the socket tells when
	if err := errors.Join(its.Close(), out.SetReadDeadline(time.Now().Add(startWithin))); err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	var word started
	if err := json.NewDecoder(io.LimitReader(out, 1<<16)).Decode(&word); err != nil {
		return fmt.Errorf("start WireGuard: it said nothing: %w; see %s", errors.Join(err, cmd.Process.Kill()), path)
	}
	if word.Error != "" {
		return errors.New(word.Error)
	}
	return nil
}

// call waits for an answer; a process that gives none is killed, so that another can be started.
func (p *Process) call(method string, args, reply any) error {
	call := p.client.Go(service+"."+method, args, reply, make(chan *rpc.Call, 1))
	for _, wait := range []time.Duration{answerWithin, time.Second} { // all of this machine may have stood still
		select {
		case <-call.Done:
			return call.Error
		case <-time.After(wait):
		}
	}
	if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("WireGuard, process %d, does not answer, and cannot be killed: %w", p.pid, err)
	}
	return fmt.Errorf("WireGuard, process %d, did not answer and was killed", p.pid)
}

// Set makes a peer known, or known anew.
func (p *Process) Set(peer Peer) error { return p.call("Set", peer, &struct{}{}) }

// Get is the device's configuration and what it knows of its peers, keys included
// (https://www.wireguard.com/xplatform/#configuration-protocol).
func (p *Process) Get() (text string, err error) {
	err = p.call("Get", struct{}{}, &text)
	return text, err
}

// InVain are the peers that have answered none of the last handshakes, which are given up after
// 15 s, until one is agreed or they are made known anew. Those that nothing was sent to are not among them.
func (p *Process) InVain() (peers []wgtypes.Key, err error) {
	err = p.call("InVain", struct{}{}, &peers)
	return peers, err
}

// Remove forgets a peer. Idempotent.
func (p *Process) Remove(peer wgtypes.Key) error { return p.call("Remove", peer, &struct{}{}) }

// Prune removes the peers that are not to be kept.
func (p *Process) Prune(keep []wgtypes.Key) error { return p.call("Prune", keep, &struct{}{}) }

// Gone is closed when the process has ended, and after Close.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// Close lets the process run on.
func (p *Process) Close() error { return p.client.Close() }

// End takes the device away and ends the process. It waits for that.
func (p *Process) End() error {
	err := p.call("End", struct{}{}, &struct{}{})
	defer p.client.Close()
	select {
	case <-p.gone:
		return nil
	case <-time.After(answerWithin):
		return fmt.Errorf("end WireGuard, process %d: %w", p.pid, errors.Join(err, syscall.Kill(p.pid, syscall.SIGKILL)))
	}
}
