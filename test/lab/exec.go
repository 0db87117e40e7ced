package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// env is the environment of everything that runs in a host.
func (l *Lab) env(host string) []string {
	d := l.HostDir(host)
	kubeconfig := filepath.Join(d, "rookery", "admin.kubeconfig")
	if host == Client {
		kubeconfig = filepath.Join(d, "admin.kubeconfig")
	}
	return []string{
		"PATH=" + l.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + d, "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM"),
		"CONTAINERS_CONF=" + d + "/containers.conf",
		"CONTAINERS_REGISTRIES_CONF=" + d + "/registries.conf",
		"XDG_CACHE_HOME=" + l.path("cache"),
		"KUBECONFIG=" + kubeconfig,
		"ROOKERY_CONFIG=" + d + "/rookery.yaml",
		// Not the machine's: nobody is there unless a test starts a bus.
		"DBUS_SYSTEM_BUS_ADDRESS=" + l.SystemBus(host),
	}
}

// SystemBus is the D-Bus address of the host's system bus, on which its logind would be.
func (l *Lab) SystemBus(host string) string {
	return "unix:path=" + filepath.Join(l.HostDir(host), "bus")
}

// Command prepares a command that will run in a host: in its namespaces, with
// KUBECONFIG set, the lab's programs on PATH and this working directory. Its files and the
// machine's are the same, only mounts differ.
func (l *Lab) Command(ctx context.Context, host string, argv ...string) (*exec.Cmd, error) {
	if _, err := l.Host(host); err != nil {
		return nil, err
	}
	resp, err := l.ask(ctx, request{Verb: "pid", Host: host})
	if err != nil {
		return nil, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	args := append([]string{"--target", strconv.Itoa(resp.PID), "--wd=" + wd, "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = l.env(host)
	return cmd, nil
}

// Run runs a command in a host and returns what it printed on both streams.
// A failure carries the output.
func (l *Lab) Run(ctx context.Context, host string, argv ...string) (string, error) {
	cmd, err := l.Command(ctx, host, argv...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %v: %w: %s", host, argv, err, out)
	}
	return string(out), nil
}

// Kill ends the peer's daemon with signal 9. Its containers live on.
func (l *Lab) Kill(ctx context.Context, host string) error {
	_, err := l.ask(ctx, request{Verb: "kill", Host: host})
	return err
}

// Crash ends everything on a host at once, as power loss would. What was only
// in the page cache is not lost: the machine's kernel goes on.
func (l *Lab) Crash(ctx context.Context, host string) error {
	_, err := l.ask(ctx, request{Verb: "crash", Host: host})
	return err
}

// Start starts the peer's daemon, and the host under it if that was crashed,
// with the given further flags of `rookery up`.
func (l *Lab) Start(ctx context.Context, host string, flags ...string) error {
	_, err := l.ask(ctx, request{Verb: "start", Host: host, Args: flags})
	return err
}
