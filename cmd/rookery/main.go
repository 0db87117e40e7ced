// Command rookery makes this machine a peer of a cluster without a master, and
// is the tool to look after it. It composes every room; see docs/design/rooms.md.
//
// Verbs that are not rookery's own are kubectl's, and a rookery that is called
// as kubectl is kubectl (package kubectl below).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/rundigitalplatform/rookery/cmd/rookery/kubectl"
)

// version is stamped by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, filepath.Base(os.Args[0]), os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rookery:", err)
		var coded interface{ ExitCode() int }
		if errors.As(err, &coded) {
			os.Exit(coded.ExitCode())
		}
		os.Exit(1)
	}
}

// run is main without the process: it returns what went wrong.
func run(ctx context.Context, program string, args []string) error {
	if strings.HasPrefix(program, "kubectl") {
		return asKubectl(args)
	}
	root := rootCommand()
	if verb := firstWord(args); verb != "" && !ours(root.Commands(), verb) {
		if near := nearest(root.Commands(), verb); near != "" {
			return fmt.Errorf("there is no verb %q; did you mean %q?", verb, near)
		}
		return asKubectl(args)
	}
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// firstWord is the verb: the first argument that is neither a flag nor a flag's value.
func firstWord(args []string) string {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case !strings.HasPrefix(a, "-"):
			return a
		case slices.Contains([]string{"-n", "--namespace", "--context", "--kubeconfig", "-s", "--server", "--as", "-v"}, a):
			i++ // its value
		}
	}
	return ""
}

// asKubectl becomes kubectl. On a peer it works without being told where the cluster is.
func asKubectl(args []string) error {
	env := os.Environ()
	if os.Getenv("KUBECONFIG") == "" && !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--kubeconfig") }) {
		if path, ok := localKubeconfig(); ok {
			env = append(env, "KUBECONFIG="+path)
		}
	}
	return kubectl.Exec(args, env)
}
