// Command guestcmd is package guest as a program, for containers of the
// conformance suite's Podman run.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/rundigitalplatform/rookery/runtime/runtimetest/guest"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	code := guest.Run(context.Background(), guest.Process{
		Args: os.Args[1:], Env: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Stop: ctx.Done(),
	})
	os.Exit(code)
}
