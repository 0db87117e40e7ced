package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func netCommand() *cobra.Command {
	root := &cobra.Command{Use: "net", Short: "The pod network and Services"}
	root.AddCommand(&cobra.Command{
		Use: "use wireguard|vxlan|direct", Short: "Change how packets travel between peers, while pods run", Args: cobra.ExactArgs(1),
		Long: `Changes how packets travel between peers, while pods run. wireguard encrypts; vxlan does
not, and is faster where the kernel has no WireGuard; direct adds nothing, and needs all
peers on one network segment. Each peer follows as soon as it hears of it: for some seconds
pods of peers that have changed and of peers that have not do not hear each other;
connections outlive that. A peer that is away follows when it is back.`,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			if err := client.SetBackend(c.Context(), args[0]); err != nil {
				return fmt.Errorf("change the network backend: %w", err)
			}
			fmt.Fprintf(c.OutOrStdout(), "each peer changes to %s as soon as it hears of it; `rookery status` on it says when it has\n", args[0])
			return nil
		},
	})
	return root
}
