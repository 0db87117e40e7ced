package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func tokenCommand() *cobra.Command {
	root := &cobra.Command{Use: "token", Short: "Tokens with which machines join the cluster"}
	expires := lifetime(24 * time.Hour)
	var quiet bool
	create := &cobra.Command{Use: "create", Short: "Make a token and print what to type on the next machine", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			t, err := client.CreateToken(c.Context(), time.Duration(expires))
			if err != nil {
				return fmt.Errorf("create token: %w", err)
			}
			if quiet {
				fmt.Fprintln(c.OutOrStdout(), t.Token)
				return nil
			}
			fmt.Fprintf(c.OutOrStdout(), "rookery up --join %s --token %s\n", t.Address, t.Token)
			fmt.Fprintf(c.ErrOrStderr(), "Paste this line on the next machine. The token is good for %s and for any number of machines;\n`rookery token revoke %s` ends it sooner.\n", ago(time.Duration(expires)), t.ID)
			return nil
		}}
	create.Flags().Var(&expires, "expires", "how long the token is good for, such as 12h or 30d")
	create.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the token alone")
	root.AddCommand(create,
		&cobra.Command{Use: "list", Short: "List the tokens, without their secrets", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			tokens, err := client.Tokens(c.Context())
			if err != nil {
				return fmt.Errorf("list tokens: %w", err)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "ID\tAGE\tEXPIRES")
			for _, t := range tokens {
				left := "expired"
				if d := time.Until(t.Expires); d > 0 {
					left = "in " + ago(d)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", t.ID, ago(time.Since(t.Created)), left)
			}
			return w.Flush()
		}},
		&cobra.Command{Use: "revoke ID", Short: "Make a token useless", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			client, err := dial()
			if err != nil {
				return err
			}
			if err := client.RevokeToken(c.Context(), args[0]); err != nil {
				return fmt.Errorf("revoke token: %w", err)
			}
			fmt.Fprintf(c.OutOrStdout(), "token %s is revoked\n", args[0])
			return nil
		}})
	return root
}
