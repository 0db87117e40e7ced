package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/cmd/rookery/check"
	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/runtime/podman"
)

func checkCommand() *cobra.Command {
	var cfg config
	c := &cobra.Command{Use: "check", Short: "What this machine lacks to be a peer, with the cures", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		path, explicit := configPath()
		if err := load(c.Flags(), path, explicit, os.Environ()); err != nil {
			return err
		}
		if err := cfg.validate(); err != nil {
			return err
		}
		engine, err := podman.New(podman.Config{Socket: cfg.PodmanSocket, Owner: "rookery", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		all := vital(c.Context(), cfg, engine)
		settings, err := cfg.clusterSettings()
		if err != nil {
			if os.Geteuid() == 0 || !errors.Is(err, fs.ErrPermission) { // to others vital has said what to do
				all = append(all, check.Finding{What: "identity", Level: check.Fatal, Found: err.Error()})
			}
			if settings, err = cfg.settings(); err != nil {
				return err
			}
		}
		all = append(all, kernel(c.Context(), cfg, settings)...)
		all = append(all, check.Clock(time.Now()))
		ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
		defer cancel()
		if info, err := engine.Info(ctx); err == nil && info.StoreDir != "" {
			all = append(all, checkStorage(info.StoreDir))
		} else if at, err := (&storage{dir: cfg.DataDir}).place(); err == nil && at != "" {
			all = append(all, checkStorage(at))
		}
		printFindings(c.OutOrStdout(), all)
		if check.FirstFatal(all) != nil {
			return fmt.Errorf("this machine cannot be a peer yet; cure what is marked fatal and run this again")
		}
		return nil
	}}
	cfg.flags(c.Flags())
	return c
}

// vital is what a peer cannot start without.
func vital(ctx context.Context, cfg config, engine runtime.Runtime) []check.Finding {
	all := []check.Finding{check.Root()}
	if all[0].Level == check.Fatal {
		return all
	}
	all = append(all, check.DataDir(cfg.DataDir))
	if pid, err := running(cfg.DataDir); err == nil && pid == 0 {
		all = append(all, check.Ports(ports(ctx, cfg))...)
	} else {
		all = append(all, check.Finding{What: "ports", Level: check.OK, Found: fmt.Sprintf("used by this machine's peer, process %d", pid)})
	}
	return append(all, check.Engine(ctx, engine, cfg.PodmanSocket, check.Versions{Check: podman.CheckVersion, Lacks: podman.Lacks})...)
}

// ports are those that a peer opens, now or when the first Ingress is made.
func ports(ctx context.Context, cfg config) []check.Port {
	all := []check.Port{
		{Network: "tcp", Number: cfg.Port, Or: "choose another port for the API with --port"},
		{Network: "tcp", Number: cfg.GossipPort, Or: "choose another port for gossip with --gossip-port"},
		{Network: "udp", Number: cfg.GossipPort, Or: "choose another port for gossip with --gossip-port"},
	}
	for _, door := range []struct {
		flag string
		port uint16
	}{{"--ingress-http", cfg.Ingress.HTTP}, {"--ingress-https", cfg.Ingress.HTTPS}} {
		if door.port != 0 {
			all = append(all, check.Port{Network: "tcp", Number: door.port, Without: "this peer would not serve Ingresses there",
				Or: "choose another port with " + door.flag + " (0: none)"})
		}
	}
	dns := func(at netip.Addr, port uint16, without, cure string) {
		for _, network := range []string{"udp", "tcp"} {
			all = append(all, check.Port{Network: network, Address: at, Number: port, Without: without, Or: cure})
		}
	}
	// What is wrong with the configuration has been said, and an address that is not there is the start's to tell.
	made, err := cfg.clusterSettings()
	if err == nil {
		for _, r := range made.Ranges() {
			dns(r.DNS, 53, "pods could not resolve names", "let it listen on its own addresses only, not on all")
		}
	}
	if !cfg.Names.serves() {
		return all
	}
	lan, err := cfg.Names.listen()
	if err == nil && len(lan) == 0 {
		if at, err := cfg.address(ctx, made); err == nil && at.IsValid() {
			lan = append(lan, netip.AddrPortFrom(at, 53))
		}
	}
	for _, a := range lan {
		dns(a.Addr(), a.Port(), "the LAN could not resolve names here", "choose another address with --lan-dns")
	}
	return all
}

// betweenPeers are the ports at which a peer is reached by the others, as "6443/tcp".
func (c config) betweenPeers(backend string) []string {
	all := []string{fmt.Sprintf("%d/tcp", c.Port), fmt.Sprintf("%d/tcp", c.GossipPort), fmt.Sprintf("%d/udp", c.GossipPort)}
	return append(all, network.Ports(backend, c.WireGuardPort)...)
}

// kernel is what package network needs of it, and of others' firewalls, for the cluster's pods.
func kernel(ctx context.Context, cfg config, settings identity.Settings) (all []check.Finding) {
	var pods []netip.Prefix
	for _, r := range settings.Ranges() {
		pods = append(pods, r.PodCIDR)
	}
	for _, f := range network.Check(ctx, pods, cfg.betweenPeers(settings.Backend)...) {
		found := check.Finding{What: "kernel: " + f.Name, Level: check.OK, Found: f.Detail, Cure: f.Cure}
		switch {
		case f.OK:
		case f.Required:
			found.Level = check.Fatal
		default:
			found.Level = check.Warn
		}
		all = append(all, found)
	}
	return all
}

func printFindings(out io.Writer, all []check.Finding) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, f := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Level, f.What, f.Found)
		if f.Level != check.OK && f.Cure != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", f.Cure)
		}
	}
	w.Flush()
}
