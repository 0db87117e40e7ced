package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// settle is how long a Guard waits after a change for the others that come with it: a firewall
	// is loaded by several programs' runs.
	settle = 100 * time.Millisecond
	// verifyPause is between two looks at the tables, however much others write to theirs. It doubles
	// up to verifyMax while each look finds something to repair: somebody else writes to ours.
	verifyPause, verifyMax = time.Second, 10 * time.Second
	// lookAnyway is for notifications that got lost, or that there are none of.
	lookAnyway = time.Minute
)

// Guard keeps tables as they were written when other programs change the machine's rules ("nft
// flush ruleset"). The kernel numbers the changes of all its tables (its generation) and tells of
// each; whose it was is known by the numbers before and after our own writes. So it costs nothing
// while nobody changes anything, and a question to the kernel when only the tables themselves
// do.
type Guard struct {
	tables  []*Table
	log     *slog.Logger
	changes chan struct{} // there is something to look at

	mu    sync.Mutex // one write of ours at a time, or the numbers would not tell
	fd    int        // for questions about the generation
	clean uint32     // the generation up to which all changes by others were looked at
	dirty bool       // look, whatever the generation
}

// NewGuard returns a guard of those tables, all that the process has in the network namespace of
// the call. It must be called before they are written to, and closed after their last use.
func NewGuard(log *slog.Logger, tables ...*Table) (*Guard, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	g := &Guard{tables: tables, log: log, changes: make(chan struct{}, 1), fd: fd}
	if g.clean, err = g.generation(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	for _, t := range tables {
		t.mu.Lock()
		t.guard = g
		t.mu.Unlock()
	}
	return g, nil
}

// Close ends what NewGuard opened, once Run has returned. The tables can be used without it.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := os.NewSyscallError("close", unix.Close(g.fd))
	g.fd = -1 // which is nobody's
	return err
}

// Run repairs the tables until ctx ends, within moments of somebody else's change or of a write
// that failed, also of those since NewGuard. It is to be called in the network namespace of NewGuard.
func (g *Guard) Run(ctx context.Context) {
	monitor, err := openMonitor()
	if err != nil {
		g.log.Warn("others' changes of the rules are looked for once a minute only", "error", err)
	} else {
		var wait sync.WaitGroup
		defer wait.Wait()
		defer monitor.Close()
		wait.Go(func() {
			if err := follow(monitor, g.wake); err != nil && ctx.Err() == nil {
				g.log.Warn("others' changes of the rules are looked for once a minute only", "error", err)
			}
		})
	}
	g.wake() // for what was before the monitor
	for {
		var pause time.Duration
		select {
		case <-ctx.Done():
			return
		case <-g.changes:
			pause = settle
		case <-time.After(lookAnyway):
		}
		for looked := true; looked; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			var repaired bool
			var err error
			looked, repaired, err = g.look(ctx)
			pause = next(pause, repaired, err)
			if err != nil && ctx.Err() == nil {
				g.log.Error("rules could not be checked, trying again", "error", err, "after", pause)
			}
		}
	}
}

// next is the pause after a look that came after a pause.
func next(pause time.Duration, repaired bool, err error) time.Duration {
	switch {
	case err != nil:
		return min(max(2*pause, verifyPause), lookAnyway)
	case repaired:
		return min(max(2*pause, verifyPause), verifyMax)
	}
	return verifyPause
}

// look verifies the tables if somebody else has changed rules, and tells whether that was so, and
// whether it was a table of ours. After an error it is so still.
func (g *Guard) look(ctx context.Context) (looked, repaired bool, err error) {
	g.mu.Lock()
	now, err := g.generation()
	if err == nil && now == g.clean && !g.dirty {
		g.mu.Unlock()
		return false, false, nil
	}
	g.clean, g.dirty = now, err != nil
	g.mu.Unlock()
	for _, t := range g.tables {
		changed, failed := t.Verify(ctx)
		repaired, err = repaired || changed, errors.Join(err, failed)
	}
	if err != nil {
		g.mu.Lock()
		g.dirty = true
		g.mu.Unlock()
	}
	return true, repaired, err
}

// write runs a write of one of the tables. nil: just that.
func (g *Guard) write(run func() error) error {
	if g == nil {
		return run()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	before, err1 := g.generation()
	err := run()
	after, err2 := g.generation()
	switch {
	case err != nil:
		g.dirty = true // and that change may be another's
		g.wake()
	case errors.Join(err1, err2) == nil && before == g.clean && after-before <= 1:
		g.clean = after
	}
	return err
}

// failed makes Run bring the tables to what is wanted: that could not be done. nil: nothing.
func (g *Guard) failed() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dirty = true
	g.wake()
}

func (g *Guard) wake() {
	select {
	case g.changes <- struct{}{}:
	default:
	}
}

// generation asks the kernel for the number of the last change of any table. Under mu.
func (g *Guard) generation() (uint32, error) {
	request := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+nfgenLen)
	request = binary.NativeEndian.AppendUint16(request, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	request = binary.NativeEndian.AppendUint16(request, unix.NLM_F_REQUEST)
	request = append(request, make([]byte, 8)...)
	request = append(request, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0)
	if err := unix.Sendto(g.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask nf_tables for its generation: %w", err)
	}
	var buf [512]byte
	n, _, err := unix.Recvfrom(g.fd, buf[:], unix.MSG_DONTWAIT) // it has answered when it has taken the question
	if err != nil {
		return 0, fmt.Errorf("read generation of nf_tables: %w", err)
	}
	if n >= unix.SizeofNlMsghdr+nfgenLen && binary.NativeEndian.Uint16(buf[4:]) == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		for _, id := range inside(buf[unix.SizeofNlMsghdr+nfgenLen:n], unix.NFTA_GEN_ID) {
			if len(id) == 4 {
				return binary.BigEndian.Uint32(id), nil
			}
		}
	}
	return 0, errors.New("nf_tables does not tell its generation")
}

// openMonitor is a socket that the end of each change of any table can be read from, and
// nothing else: what a change consists of is dropped before it wakes anybody.
func openMonitor() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "nf_tables notifications")
	if err := listen(fd); err != nil {
		file.Close()
		return nil, fmt.Errorf("listen to nf_tables: %w", err)
	}
	return file, nil
}

func listen(fd int) error {
	// A filter reads big endian, and the kind of message is as the machine has it.
	kind := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN))
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(kind), SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, ins := range program {
		filter[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}))
}

// follow tells of changes until the monitor is closed; several may be told as one.
func follow(monitor *os.File, changed func()) error {
	var buf [512]byte
	for {
		// What did not fit the socket's buffer was a change as well.
		if _, err := monitor.Read(buf[:]); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("read from nf_tables: %w", err)
		}
		changed()
	}
}
