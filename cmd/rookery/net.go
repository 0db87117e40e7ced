package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
)

func netCommand() *cobra.Command {
	var asJSON bool
	var namespace string
	root := &cobra.Command{Use: "net [NAMESPACE/]SERVICE", Short: "Where a Service's connections go, who is left out and why", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			service := args[0]
			if ns, name, ok := strings.Cut(service, "/"); ok { // also the way to one that is called as a verb below
				namespace, service = ns, name
			}
			client, err := dial()
			if err != nil {
				return err
			}
			s, err := client.NetService(c.Context(), namespace, service)
			if err != nil {
				return fmt.Errorf("look at service %s/%s: %w", namespace, service, err)
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(s)
			}
			return printService(c.OutOrStdout(), s)
		}}
	root.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	root.Flags().StringVarP(&namespace, "namespace", "n", "default", "of the Service")
	root.AddCommand(useCommand(), &cobra.Command{Use: "check", Short: "Try pods, Services and DNS from every peer to every other, and name what is broken", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			probes, err := client.NetCheck(c.Context())
			if err != nil {
				return fmt.Errorf("check the network: %w", err)
			}
			if asJSON {
				err = json.NewEncoder(c.OutOrStdout()).Encode(probes)
			} else {
				err = printProbes(c.OutOrStdout(), probes)
			}
			for _, p := range probes {
				if p.Failed != "" {
					return errors.Join(err, errors.New("the network is not whole"))
				}
			}
			return err
		}})
	return root
}

func useCommand() *cobra.Command {
	return &cobra.Command{
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
	}
}

func printService(out io.Writer, s admin.Service) error {
	fmt.Fprintf(out, "As peer %s sees it\n", s.Peer)
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	for _, a := range s.Addresses {
		fmt.Fprintf(w, "address\t%s\n", a)
	}
	for _, p := range s.Ports {
		fmt.Fprintf(w, "port\t%s\n", p)
	}
	fmt.Fprintln(w, "\nPORT\tENDPOINT\tPEER\tPOD\tGETS CONNECTIONS")
	for _, e := range s.Endpoints {
		gets := "yes"
		if e.LeftOut != "" {
			gets = "no: " + e.LeftOut
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Port, e.Address, orDash(e.Peer), orDash(e.Pod), gets)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range s.Notes {
		fmt.Fprintln(out, "\n"+n)
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func printProbes(out io.Writer, probes []admin.Probe) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "FROM\tWHAT\tTO\tREACHED")
	for _, p := range probes {
		reached := "yes"
		if p.Note != "" {
			reached += ": " + p.Note
		}
		if p.Untried != "" {
			reached = "not tried: " + p.Untried
		}
		if p.Failed != "" {
			reached = "NO: " + p.Failed
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.From, p.What, p.To, reached)
	}
	return w.Flush()
}
