package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// dialIn connects from inside the network namespace of a process. The address must
// be numeric, so that the dialler needs no other goroutine: only this thread is there.
func dialIn(ctx context.Context, pid int, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := dialLocked(ctx, pid, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialLocked(ctx context.Context, pid int, address string) (net.Conn, error) {
	goruntime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		goruntime.UnlockOSThread()
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	target, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		goruntime.UnlockOSThread()
		return nil, fmt.Errorf("open network namespace of the pod: %w", err)
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return nil, fmt.Errorf("enter network namespace of the pod: %w", err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		// Still locked: the thread ends with this goroutine and serves no other.
		if conn != nil {
			err = errors.Join(err, conn.Close())
		}
		return nil, errors.Join(err, fmt.Errorf("leave network namespace of the pod: %w", back))
	}
	goruntime.UnlockOSThread()
	return conn, err
}
