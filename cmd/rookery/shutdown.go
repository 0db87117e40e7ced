package main

import (
	"context"
	"errors"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/rundigitalplatform/rookery/cmd/rookery/logind"
)

// watchShutdown ends the pods in order when systemd-logind says that the machine is
// about to stop. Without logind, and while the bus is broken, pods end with the machine.
func (p *peer) watchShutdown(ctx context.Context) error {
	err := logind.Run(ctx, logind.Config{
		Connect: func(ctx context.Context) (*dbus.Conn, error) { return dbus.ConnectSystemBus(dbus.WithContext(ctx)) },
		Stopping: func(ctx context.Context, within time.Duration) {
			critical := within / 3 // as kubelet's documentation divides its example
			p.agent.Shutdown(ctx, within-critical, critical)
		},
		CalledOff: p.agent.Resume,
		Log:       p.log,
	})
	switch {
	case errors.Is(err, logind.ErrNone):
		p.log.Debug("pods are not ended in order when this machine stops", "reason", err)
	case err != nil:
		p.log.Warn("pods are not ended in order when this machine stops", "error", err)
	}
	<-ctx.Done()
	return nil
}
