package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/cmd/rookery/check"
	"github.com/rundigitalplatform/rookery/runtime/podman"
)

// memoryBudget is where the garbage collector begins to work harder: the
// resident memory that a peer may have, less what is not heap.
const memoryBudget = 96 << 20

func upCommand() *cobra.Command {
	var cfg config
	var detach bool
	c := &cobra.Command{
		Use: "up", Short: "Make this machine a peer, and resume it after a reboot", Args: cobra.NoArgs,
		Long: `On the first machine 'rookery up' makes a cluster. On each further one,
'rookery up --join HOST --token TOKEN' joins it; 'rookery token create' on any
peer prints that line. Later, and after a reboot, 'rookery up' resumes.

It runs until it is told to stop; pods live on without it.`,
		RunE: func(c *cobra.Command, _ []string) error {
			path, explicit := configPath()
			if err := load(c.Flags(), path, explicit, os.Environ()); err != nil {
				return err
			}
			if err := cfg.validate(); err != nil {
				return err
			}
			if detach {
				return upDetached(c.Context(), cfg)
			}
			return up(c.Context(), cfg)
		},
	}
	cfg.flags(c.Flags())
	c.Flags().BoolVarP(&detach, "detach", "d", false, "run in the background, and return when the API is ready")
	return c
}

// up is the daemon: it looks before it leaps, becomes somebody, and runs.
func up(ctx context.Context, cfg config) error {
	level, err := cfg.level()
	if err != nil {
		return err
	}
	log := newLog(os.Stderr, level)
	tuneMemory()
	if err := setUpLibraries(log); err != nil {
		return err
	}

	engine, err := podman.New(podman.Config{Socket: cfg.PodmanSocket, Owner: "rookery", Logger: log.With("room", "runtime")})
	if err != nil {
		return err
	}
	if err := check.FirstFatal(vital(ctx, cfg, engine)); err != nil {
		return err
	}
	addr, err := cfg.address()
	if err != nil {
		return err
	}
	unlock, err := lock(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	id, first, err := become(ctx, cfg, addr, log)
	if err != nil {
		return err
	}
	p, err := newPeer(cfg, id, engine, addr, log)
	if err != nil {
		return err
	}
	if first { // idempotent: a store that was in a cluster stays as it is
		if err := p.store.Bootstrap(); err != nil {
			return err
		}
	}
	return p.run(ctx, func() {
		log.Info("ready", "peer", id.Name(), "address", addr, "port", cfg.Port, "took", time.Since(p.started).Round(time.Millisecond), "kubeconfig", id.KubeconfigPath())
		if err := notifySystemd("READY=1"); err != nil {
			log.Warn("systemd was not told that we are ready", "err", err)
		}
	})
}

// foundedMark is there while this peer is the one that made the cluster and the
// store has not been bootstrapped for certain: a power loss in between must not
// leave an identity without a cluster.
const foundedMark = "founded"

// become makes or loads this peer's identity: of a new cluster, of the one to
// join, or the one it has. first says that this peer founded its cluster.
func become(ctx context.Context, cfg config, addr netip.Addr, log *slog.Logger) (id *identity.Identity, first bool, err error) {
	if err := identity.ValidateName(cfg.Name); err != nil {
		return nil, false, err
	}
	mark := filepath.Join(cfg.DataDir, foundedMark)
	there, err := identity.Exists(cfg.DataDir)
	if err != nil {
		return nil, false, err
	}
	switch {
	case there:
		id, err := identity.Load(cfg.DataDir)
		if err != nil {
			return nil, false, err
		}
		if id.Name() != cfg.Name {
			return nil, false, fmt.Errorf("%s belongs to the peer %q, not %q: start it with --name %s, or choose another --data-dir", cfg.DataDir, id.Name(), cfg.Name, id.Name())
		}
		_, err = os.Stat(mark)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
		return id, err == nil, nil
	case cfg.Join != "" && cfg.Token == "":
		return nil, false, errors.New("--join needs a --token; `rookery token create` on a peer prints the whole line")
	case cfg.Token != "" && cfg.Join == "":
		return nil, false, errors.New("--token needs --join HOST, the name or address of a peer; `rookery token create` on a peer prints the whole line")
	case cfg.Join != "":
		joined, err := cluster.Join(ctx, cfg.Join, cfg.Token, cluster.JoinOptions{
			Dir: cfg.DataDir, Name: cfg.Name, Address: addr, Port: cfg.Port, GossipPort: cfg.GossipPort, Version: version,
		})
		if err != nil {
			return nil, false, err
		}
		log.Info("joined the cluster", "through", cfg.Join, "podCIDR", joined.Self.PodCIDR)
		return joined.Identity, false, nil
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return nil, false, err
	}
	id, err = identity.Create(cfg.DataDir, identity.Options{Name: cfg.Name, Addresses: []netip.Addr{addr}, Settings: identity.Settings{
		PodCIDR: netip.MustParsePrefix(cfg.PodCIDR), ServiceCIDR: netip.MustParsePrefix(cfg.ServiceCIDR), DNS: netip.MustParseAddr(cfg.ClusterDNS),
		Domain: cfg.ClusterDomain, Backend: cfg.Network,
	}})
	if err == nil {
		log.Info("made a new cluster", "peer", cfg.Name, "address", addr)
	}
	return id, true, err
}

// lock makes sure that one daemon uses the data directory.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(dir, "rookery.pid")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, readErr := os.ReadFile(path)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("this machine's peer runs already (process %s, %v); `rookery status` shows how it is", strings.TrimSpace(string(pid)), readErr)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid()))); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
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

// notifySystemd tells systemd, if it started us, how we are (sd_notify(3)).
func notifySystemd(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// tuneMemory trades some processor time for memory, unless the user has said otherwise.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryBudget)
	}
}
