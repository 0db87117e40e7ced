package lab

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// Reap waits for orphans, which the kernel hands to the first process of a
// host (conmon and the containers' processes), until the process ends. It runs
// in a process of its own: were it to wait inside HostInit, it would take the
// exit status of children that os/exec waits for.
//
// HostInit as process 1 therefore starts itself once more and becomes the reaper.
func Reap(child *exec.Cmd) (int, error) {
	if err := child.Start(); err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case pid == child.Process.Pid && (status.Exited() || status.Signaled()):
			return status.ExitStatus(), nil
		case pid <= 0:
			<-signals
		}
	}
}
