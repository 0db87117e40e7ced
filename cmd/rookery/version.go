package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	kube "k8s.io/component-base/version"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Which rookery this is, and which Kubernetes API it speaks", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(c.OutOrStdout(), "rookery %s (Kubernetes API %s, %s %s/%s)\n", version, kube.Get().GitVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		}}
}
