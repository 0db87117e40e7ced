package network

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread that is in the network namespace ns, and waits for it.
func inNamespace(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go onOwnThread(func() {
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	})
	return <-done
}

// onOwnThread runs f on a thread that ends with the calling goroutine, so that f may
// leave it in another namespace. It is never the main thread: that one does not end, and
// it is what others see of this process in /proc.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // locked: the thread ends with the goroutine
	}
	done := make(chan struct{})
	go func() { // cannot be the main thread as well, which is held here
		defer close(done)
		onOwnThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}
