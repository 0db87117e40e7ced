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
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/cmd/rookery/check"
	"github.com/rundigitalplatform/rookery/runtime/podman"
)

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

	engine, err := podman.New(podman.Config{Socket: cfg.PodmanSocket, Owner: "rookery", Logger: log.With("room", "runtime"), Handlers: cfg.Images.Handlers})
	if err != nil {
		return err
	}
	kept := &storage{podman: engine, dir: cfg.DataDir}
	if err := kept.mendFiles(ctx, log); err != nil {
		return err
	}
	if err := check.FirstFatal(vital(ctx, cfg, engine)); err != nil {
		return kept.explain(err)
	}
	settings, err := cfg.clusterSettings()
	if err != nil {
		return err
	}
	addr, err := cfg.address(ctx, settings)
	if err != nil {
		return err
	}
	unlock, crashed, err := lock(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	kept.thorough = crashed
	id, first, err := become(ctx, cfg, addr, log)
	if err != nil {
		return err
	}
	if err := id.EnsureKubeconfig(fmt.Sprintf("https://127.0.0.1:%d", cfg.Port)); err != nil {
		return err
	}
	p, err := newPeer(cfg, id, kept, addr, log)
	if err != nil {
		return err
	}
	if first { // a store that was in a cluster stays as it is
		if err := p.store.Bootstrap(); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(cfg.DataDir, foundedMark)); err != nil {
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

// foundedMark is there from before a new cluster's identity is made until its
// store has been bootstrapped: a power loss in between must not leave an identity
// without a cluster. After that it must go: a founder whose state is lost has to
// get it from the others, not to found the cluster once more.
const foundedMark = "founding"

// become makes or loads this peer's identity: of a new cluster, of the one to
// join, or the one it has. first says that this peer is founding its cluster.
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
	made, err := cfg.settings()
	if err != nil {
		return nil, false, err
	}
	id, err = identity.Create(cfg.DataDir, identity.Options{Name: cfg.Name, Addresses: []netip.Addr{addr}, Settings: made})
	if err == nil {
		log.Info("made a new cluster", "peer", cfg.Name, "address", addr)
	}
	return id, true, err
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
