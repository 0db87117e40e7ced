package main

import (
	"slices"

	"github.com/agext/levenshtein"
	"github.com/spf13/cobra"
)

const about = `Rookery makes a few machines one cluster without a master, and runs Podman
pods on it through the Kubernetes API.

  On the first machine:     rookery up
  For each further machine: rookery token create   (prints what to type there)
  Then:                     rookery status
                            rookery apply -f app.yaml

Every kubectl verb works too: get, apply, logs, exec, rollout, describe, …
'rookery kubectl --help' lists them.`

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "rookery", Short: "A cluster without a master", Long: about,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(upCommand(), downCommand(), checkCommand(), tokenCommand(), peersCommand(), statusCommand(), netCommand(),
		imageCommand(), kubeconfigCommand(), versionCommand(), wireGuardCommand(),
		&cobra.Command{
			Use: "kubectl", Short: "kubectl, as carried by this binary", DisableFlagParsing: true,
			RunE: func(_ *cobra.Command, args []string) error { return asKubectl(args) },
		})
	return root
}

// ours tells rookery's verbs from kubectl's. `version` with kubectl's flags is
// reached by `rookery kubectl version`.
func ours(commands []*cobra.Command, verb string) bool {
	return verb == "help" || slices.ContainsFunc(commands, func(c *cobra.Command) bool { return c.Name() == verb || c.HasAlias(verb) })
}

// nearest returns the verb of ours that a mistyped one is close to, if any. No
// verb of kubectl's with four letters or more is within two changes of one of ours.
func nearest(commands []*cobra.Command, verb string) string {
	for _, c := range commands {
		if len(verb) >= 4 && levenshtein.Distance(verb, c.Name(), nil) <= 2 {
			return c.Name()
		}
	}
	return ""
}
