package main

import (
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/network/overlay/userwg"
)

// wireGuardVerb is what the daemon starts this program with where the kernel has no WireGuard.
const wireGuardVerb = "wireguard"

// wireGuardMemory is where the garbage collector begins to work harder: most of it are the
// buffers of packets under way.
const wireGuardMemory = 48 << 20

func wireGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use: wireGuardVerb, Hidden: true, Args: cobra.NoArgs,
		Short: "Carry packets between the peers; started by the daemon where the kernel has no WireGuard",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(wireGuardMemory)
			}
			debug.FreeOSMemory() // what the start of the whole program has left behind
			if err := forgetProgram(); err != nil {
				return err
			}
			return userwg.Run(cmd.Context(), os.Stdin, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
}
