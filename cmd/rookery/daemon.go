package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// lock makes sure that one daemon uses the data directory. crashed: the last one that did
// has not unlocked it; it was killed, or the power went.
func lock(dir string) (unlock func(), crashed bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(dir, "rookery.pid")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid, err := running(dir)
			if err != nil {
				return nil, false, err
			}
			return nil, false, fmt.Errorf("this machine's peer runs already (process %d); `rookery status` shows how it is", pid)
		}
		return nil, false, fmt.Errorf("lock %s: %w", path, err)
	}
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		crashed = true
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid()))); err != nil {
		f.Close()
		return nil, false, err
	}
	return func() {
		_ = f.Truncate(0) // what is left in it makes the next start look more closely
		f.Close()
	}, crashed, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// running returns the process id of the daemon on this machine; 0 if none runs.
func running(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, "rookery.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return 0, nil // nobody holds it
	} else if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, err
	}
	text := make([]byte, 20)
	n, err := f.ReadAt(text, 0)
	if n == 0 {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text[:n])))
}

// upDetached starts the daemon in the background and waits until it serves.
func upDetached(ctx context.Context, cfg config) error {
	if pid, err := running(cfg.DataDir); err != nil || pid != 0 {
		if err == nil {
			fmt.Printf("this machine's peer runs already (process %d)\n", pid)
		}
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	logPath := filepath.Join(cfg.DataDir, "rookery.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	began, err := log.Seek(0, 2)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var args []string
	for _, a := range os.Args[1:] {
		if a != "-d" && !strings.HasPrefix(a, "--detach") {
			args = append(args, a)
		}
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		text, err := os.ReadFile(logPath)
		if err != nil {
			return err
		}
		text = text[min(began, int64(len(text))):]
		if strings.Contains(string(text), "msg=ready ") {
			fmt.Printf("the peer runs (process %d); its log is %s\n", cmd.Process.Pid, logPath)
			return nil
		}
		select {
		case <-ended:
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			return fmt.Errorf("the peer did not start: %s (%s)", strings.TrimPrefix(lines[len(lines)-1], "rookery: "), logPath)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func downCommand() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Stop this machine's peer; its state is kept and its pods live on", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		pid, err := running(dataDir())
		if err != nil || pid == 0 {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop process %d: %w", pid, err)
		}
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if now, err := running(dataDir()); err != nil || now == 0 {
				return err
			}
		}
		return fmt.Errorf("process %d does not stop; see its log, or end it with `kill -9 %d`: its pods live on", pid, pid)
	}}
}
