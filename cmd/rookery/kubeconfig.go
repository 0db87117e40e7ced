package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

func kubeconfigCommand() *cobra.Command {
	var server string
	c := &cobra.Command{Use: "kubeconfig", Short: "Print an administrator's kubeconfig, for kubectl elsewhere", Args: cobra.NoArgs,
		Long: `Print an administrator's kubeconfig with a new client certificate, for a
machine that is no peer. Any peer will do as its server. Run it on a peer.`,
		RunE: func(c *cobra.Command, _ []string) error {
			var cfg config
			flags := c.Flags()
			cfg.flags(flags)
			path, explicit := configPath()
			if err := load(flags, path, explicit, os.Environ()); err != nil {
				return err
			}
			id, err := identity.Load(cfg.DataDir)
			if err != nil {
				return fmt.Errorf("%w; run this on a peer, as root", err)
			}
			if server == "" {
				addr, err := cfg.address()
				if err != nil {
					return err
				}
				server = fmt.Sprintf("https://%s:%d", addr, cfg.Port)
			}
			data, err := id.Kubeconfig(server, "admin", []string{adminGroup}, 0)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(data)
			return err
		}}
	c.Flags().StringVar(&server, "server", "", "URL of the peer to ask (default: this one's address)")
	return c
}
