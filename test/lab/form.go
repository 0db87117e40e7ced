package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// configure writes the configuration file of each host's peer. The client has
// one too: it is a machine that could become a peer.
func (l *Lab) configure() error {
	for _, h := range l.Hosts {
		if err := os.MkdirAll(l.HostDir(h.Name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(l.path(h.Name, "rookery.yaml"), []byte(l.config(h)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) config(h Host) string {
	d := l.HostDir(h.Name)
	network := "load-balancer-addresses: [10.77.0.200-10.77.0.201]\n" // of the LAN, free for Services
	if h.IP == h.IPv6 {
		network = "pod-cidr: fd42::/56\nservice-cidr: fd43::/112\n"
	}
	// The hosts share the machine's disk: how full that is says nothing about them.
	return fmt.Sprintf("name: %s\ndata-dir: %s/rookery\npodman-socket: %s/podman.sock\nadvertise-address: %s\n%sruntime-handlers: {wrapped: %s/wrapped.sock}\neviction-hard: {nodefs.available: 1%%, imagefs.available: 1%%}\n", h.Name, d, d, h.IP, network, d)
}

// Form makes the peers of a lab that was started Blank one cluster, with
// further flags of `rookery up` and, if wanted, with the sample's image, and
// waits until it is of use.
func (l *Lab) Form(ctx context.Context, flags []string, say func(string), images bool) error {
	first := l.Hosts[0]
	say("starting the first peer")
	if err := l.Start(ctx, first.Name, flags...); err != nil {
		return err
	}
	if err := l.until(ctx, "the first peer serves its API", func() error {
		_, err := l.Run(ctx, first.Name, "rookery", "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	if err := l.clientConfig(); err != nil {
		return err
	}
	if len(l.Peers()) > 1 {
		say("joining the other peers")
		line, err := l.Run(ctx, first.Name, "rookery", "token", "create", "--quiet")
		if err != nil {
			return err
		}
		token := strings.TrimSpace(line)
		for _, h := range l.Peers()[1:] {
			if err := l.Start(ctx, h.Name, append(flags, "--join", first.IP, "--token", token)...); err != nil {
				return err
			}
		}
	}
	say("waiting until all peers are Ready")
	if err := l.until(ctx, "all peers are Ready", func() error { return l.ready(ctx, len(l.Peers())) }); err != nil {
		return err
	}
	if !images {
		return nil
	}
	say("loading the sample's image")
	for _, image := range []string{"hello.tar", "busybox.tar"} {
		if _, err := l.Run(ctx, first.Name, "rookery", "image", "load", l.Bin+"/"+image); err != nil {
			return err
		}
	}
	return nil
}

// ready tells what is missing until want nodes are Ready.
func (l *Lab) ready(ctx context.Context, want int) error {
	out, err := l.Run(ctx, l.Hosts[0].Name, "rookery", "get", "nodes", "-o",
		`jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
	if err != nil {
		return err
	}
	if got := strings.Count(out, "=True"); got != want {
		return fmt.Errorf("%d of %d nodes are Ready: %s", got, want, out)
	}
	return nil
}

// until polls what until it holds, and gives up after four minutes or when ctx ends.
func (l *Lab) until(ctx context.Context, goal string, what func() error) error {
	deadline := time.Now().Add(4 * time.Minute)
	for {
		err := what()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("wait until %s: %w; the peers' logs are %s/*/rookery.log", goal, err, l.Dir)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// clientConfig writes the client's kubeconfig: the admin's, with the first peer's address.
func (l *Lab) clientConfig() error {
	data, err := os.ReadFile(l.path(l.Hosts[0].Name, "rookery", "admin.kubeconfig"))
	if err != nil {
		return err
	}
	host := l.Hosts[0].IP
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	text := strings.Replace(string(data), "127.0.0.1", host, 1)
	if text == string(data) {
		return errors.New("admin.kubeconfig does not name 127.0.0.1")
	}
	return os.WriteFile(l.path(Client, "admin.kubeconfig"), []byte(text), 0o600)
}

// Credentials writes the administrator's certificate and key as files, for
// programs that read no kubeconfig, and returns their paths.
func (l *Lab) Credentials() (cert, key string, err error) {
	config, err := clientcmd.LoadFromFile(l.path(Client, "admin.kubeconfig"))
	if err != nil {
		return "", "", err
	}
	for _, user := range config.AuthInfos {
		cert, key = l.path(Client, "admin.crt"), l.path(Client, "admin.key")
		return cert, key, errors.Join(os.WriteFile(cert, user.ClientCertificateData, 0o600), os.WriteFile(key, user.ClientKeyData, 0o600))
	}
	return "", "", errors.New("the kubeconfig has no user")
}

// JSON runs a command in a host and decodes what it printed into v.
func (l *Lab) JSON(ctx context.Context, v any, host string, argv ...string) error {
	cmd, err := l.Command(ctx, host, argv...)
	if err != nil {
		return err
	}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %v: %w: %s", host, argv, err, out)
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%s: %v: %w in %s", host, argv, err, out)
	}
	return nil
}
