package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "status", Short: "The cluster on one screen: what it is, what is wrong, what to do", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			s, err := client.Status(c.Context())
			if err != nil {
				return fmt.Errorf("ask for the status: %w", err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(s)
			}
			return printStatus(c.OutOrStdout(), s)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printStatus(out io.Writer, s admin.Status) error {
	quorum := "yes, the leader is " + s.Leader
	if !s.Quorum {
		quorum = "NO: nothing can be changed; this peer shows what it last knew"
		if len(s.Missing) > 0 {
			quorum += ". Missing: " + strings.Join(s.Missing, ", ")
		}
	}
	fmt.Fprintf(out, "Answered by  %s (rookery %s, %s)\n", s.Peer, s.Version, s.Engine)
	fmt.Fprintf(out, "Quorum       %s\n", quorum)
	fmt.Fprintf(out, "State        revision %d, term %d, digest %.12s\n", s.Revision, s.Term, s.Digest)
	network := s.Network
	if s.Change != "" {
		network += ", to be " + s.Change
	}
	fmt.Fprintf(out, "Network      %s\n", network)
	fmt.Fprintf(out, "Pods         %d of %d ready\n\n", s.Pods.Ready, s.Pods.Total)
	if err := printPeers(out, s.Peers); err != nil {
		return err
	}
	if len(s.Paths) > 0 {
		fmt.Fprintln(out, "\nPaths with a smaller MTU, from this peer:")
		for _, p := range s.Paths {
			fmt.Fprintln(out, "  "+p)
		}
	}
	if len(s.Pods.Waiting) > 0 {
		fmt.Fprintln(out, "\nPods that wait:")
		for _, w := range s.Pods.Waiting {
			fmt.Fprintln(out, "  "+w)
		}
	}
	if len(s.Problems) == 0 {
		fmt.Fprintln(out, "\nNothing is wrong.")
		return nil
	}
	fmt.Fprintln(out, "\nWhat is wrong, and what to do:")
	for _, p := range s.Problems {
		fmt.Fprintf(out, "  ! %s\n    %s\n", p.What, p.Do)
	}
	return nil
}
