package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
)

func peersCommand() *cobra.Command {
	var asJSON bool
	root := &cobra.Command{Use: "peers", Short: "Who belongs to the cluster and how they are", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			peers, err := client.Peers(c.Context())
			if err != nil {
				return fmt.Errorf("list peers: %w", err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(peers)
			}
			return printPeers(c.OutOrStdout(), peers)
		}}
	root.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	root.AddCommand(&cobra.Command{Use: "remove NAME", Short: "Take a peer that is gone for good out of the cluster", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			if err := client.RemovePeer(c.Context(), args[0]); err != nil {
				return fmt.Errorf("remove peer: %w", err)
			}
			fmt.Fprintf(c.OutOrStdout(), "peer %s is removed; its key is refused from now on\n", args[0])
			return nil
		}})
	return root
}

func printPeers(out io.Writer, peers []admin.PeerInfo) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tADDRESS\tSTATE\tROLE\tROUND TRIP\tPODS\tVERSION\tJOINED")
	for _, p := range peers {
		name, rtt := p.Name, "-"
		if p.Self {
			name += " *"
		}
		if p.RoundTrip > 0 {
			rtt = p.RoundTrip.Round(10 * time.Microsecond).String()
		}
		address := p.Address
		if p.Other != "" {
			address += "," + p.Other
		}
		if p.Hidden {
			address += " (hidden)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s ago\n", name, address, p.State, p.Role, rtt, strings.Join(p.PodCIDRs, ","), p.Version, ago(time.Since(p.Joined)))
	}
	return w.Flush()
}
