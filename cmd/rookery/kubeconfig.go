package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

func kubeconfigCommand() *cobra.Command {
	var server string
	var who subject
	c := &cobra.Command{Use: "kubeconfig", Short: "Print a kubeconfig, for kubectl elsewhere", Args: cobra.NoArgs,
		Long: `Print a kubeconfig with a new client certificate, for a machine that is no
peer: an administrator's, or with --user somebody's who may do what roles grant.
Any peer will do as its server. Run it on a peer. A certificate cannot be taken
back before it expires; taking the role away works at once.`,
		Example: `  rookery kubeconfig --user bob --group developers --expires 30d > bob.kubeconfig
  rookery create rolebinding developers --clusterrole=edit --group=developers -n shop`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := who.complete(); err != nil {
				return err
			}
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
				addr, err := cfg.address(c.Context(), id.Settings())
				if err != nil {
					return err
				}
				server = "https://" + netip.AddrPortFrom(addr, cfg.Port).String()
			}
			data, err := id.Kubeconfig(server, who.user, who.groups, time.Duration(who.expires))
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(data)
			fmt.Fprint(c.ErrOrStderr(), who.hint())
			return err
		}}
	f := c.Flags()
	f.StringVar(&server, "server", "", "URL of the peer to ask (default: this one's address)")
	f.StringVar(&who.user, "user", "", "name of a user who is no administrator")
	f.StringSliceVar(&who.groups, "group", nil, "a group of the user; may be repeated")
	f.Var(&who.expires, "expires", "how long the certificate is good for, such as 30d (default: an administrator's 10 years, a user's one)")
	return c
}

// subject is for whom a kubeconfig is.
type subject struct {
	user    string
	groups  []string
	expires lifetime
}

// complete fills in an administrator, and refuses what would be somebody else.
func (s *subject) complete() error {
	switch {
	case s.user == "" && len(s.groups) > 0:
		return errors.New("--group needs --user: whose groups are these?")
	case s.user == "":
		s.user, s.groups = "admin", []string{adminGroup}
		return nil
	case strings.HasPrefix(s.user, "system:"):
		return fmt.Errorf("user %q: names that begin with system: are those of components; choose another", s.user)
	}
	for _, g := range s.groups {
		if g == "" || strings.HasPrefix(g, "system:") && g != adminGroup {
			return fmt.Errorf("group %q: groups that begin with system: are given by the API itself, all but %s; choose another and bind a role to it", g, adminGroup)
		}
	}
	if s.expires == 0 {
		s.expires = lifetime(365 * 24 * time.Hour)
	}
	return nil
}

// hint says what the user can do next.
func (s *subject) hint() string {
	if slices.Contains(s.groups, adminGroup) {
		return ""
	}
	whom := "--user=" + s.user
	if len(s.groups) > 0 {
		whom = "--group=" + s.groups[0]
	}
	return fmt.Sprintf("%s may do what roles grant. For example, to see everything:\n  rookery create clusterrolebinding %s-view --clusterrole=view %s\n", s.user, s.user, whom)
}
