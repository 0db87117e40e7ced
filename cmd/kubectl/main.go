// Command kubectl is Kubernetes' own kubectl, unchanged. It is compiled apart
// from rookery, compressed and embedded in it (cmd/rookery/kubectl), so that one
// file carries both programs and the daemon has none of kubectl's memory.
package main

import (
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	// Verbosity has to be known before the command tree, with its plugins, is built.
	if _, err := logs.GlogSetter(cmd.GetLogVerbosity(os.Args)); err != nil {
		util.CheckErr(err)
	}
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
