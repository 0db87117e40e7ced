// Command lab runs several real peers on this machine, each in namespaces of its
// own with a Podman of its own, and breaks them on request. See package test/lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit): // `lab exec` ends as its command did
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var dir string
	root := &cobra.Command{Use: "lab", Short: "Several real peers on this machine", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringVar(&dir, "dir", "/tmp/rookery-lab", "where the lab keeps its files")
	root.AddCommand(up(&dir), execCommand(&dir), imageCommand(), registryCommand(),
		&cobra.Command{Use: "down", Short: "End the lab and remove every trace of it", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return lab.Down(c.Context(), dir)
		}},
		peerVerb(&dir, "cut", "Pull a host's network cable", (*lab.Lab).Cut),
		peerVerb(&dir, "heal", "Plug a host's network cable in again", (*lab.Lab).Heal),
		peerVerb(&dir, "wall", "Give a host a firewall that lets nobody dial it", (*lab.Lab).Wall),
		peerVerb(&dir, "unwall", "Take that firewall away again", (*lab.Lab).Unwall),
		peerVerb(&dir, "kill", "End a peer's daemon with signal 9; its containers live on", (*lab.Lab).Kill),
		peerVerb(&dir, "crash", "End a peer's daemon and containers at once, as power loss would", (*lab.Lab).Crash),
		peerVerb(&dir, "start", "Start a peer's daemon again", func(l *lab.Lab, ctx context.Context, host string) error { return l.Start(ctx, host) }),
		&cobra.Command{Use: "supervise", Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return lab.Supervise(c.Context(), dir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}},
		&cobra.Command{Use: "host HOST", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			return host(dir, args[0])
		}},
	)
	return root
}

// host is the first process of a lab host. It only reaps; its child does the work.
func host(dir, name string) error {
	if os.Getpid() != 1 {
		return lab.HostInit(dir, name, os.Stdin, os.Stdout)
	}
	child := exec.Command("/proc/self/exe", "host", "--dir", dir, name)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	code, err := lab.Reap(child)
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

func up(dir *string) *cobra.Command {
	var o lab.Options
	c := &cobra.Command{Use: "up [-- FLAGS OF rookery up]", Short: "Start peers and make them one cluster", RunE: func(c *cobra.Command, args []string) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.Dir, o.Flags = *dir, args
		if o.Bin == "" {
			o.Bin = filepath.Dir(self)
		}
		began := time.Now()
		l, err := lab.Up(c.Context(), o, func(step string) {
			fmt.Printf("%5.1fs  %s\n", time.Since(began).Seconds(), step)
		})
		if err != nil {
			return err
		}
		fmt.Printf("%5.1fs  %d peers are up; try `lab exec h1 -- rookery status`\n", time.Since(began).Seconds(), len(l.Peers()))
		return nil
	}}
	c.Flags().IntVar(&o.Peers, "peers", 3, "how many peers")
	c.Flags().StringVar(&o.Bin, "bin", "", "directory of the rookery program (default: where lab is)")
	c.Flags().BoolVar(&o.IPv6Only, "ipv6-only", false, "hosts without IPv4, and a cluster of IPv6")
	c.Flags().IntSliceVar(&o.NAT, "nat", nil, "numbers of hosts that are behind NAT, where nobody can dial them")
	c.Flags().BoolVar(&o.Blank, "blank", false, "start the hosts with their Podman, but no peers")
	return c
}

func peerVerb(dir *string, name, short string, do func(*lab.Lab, context.Context, string) error) *cobra.Command {
	return &cobra.Command{Use: name + " HOST", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		return do(l, c.Context(), args[0])
	}}
}

func execCommand(dir *string) *cobra.Command {
	return &cobra.Command{Use: "exec HOST -- COMMAND...", Short: "Run a command in a host, with KUBECONFIG set", Args: cobra.MinimumNArgs(2), RunE: func(c *cobra.Command, args []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		cmd, err := l.Command(c.Context(), args[0], args[1:]...)
		if err != nil {
			return err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}}
}
