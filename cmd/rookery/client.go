package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
)

// localKubeconfig is the admin's on this peer, if there is one that we may read.
func localKubeconfig() (string, bool) {
	path := filepath.Join(dataDir(), "admin.kubeconfig")
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	f.Close()
	return path, true
}

// dataDir is where a peer on this machine keeps its state, from the environment or the configuration file.
func dataDir() string {
	var c config
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.flags(f)
	path, explicit := configPath()
	if err := load(f, path, explicit, os.Environ()); err != nil {
		return defaultDataDir // the verbs that need more of the configuration say what is wrong with it
	}
	return c.DataDir
}

func configPath() (path string, explicit bool) {
	if p := os.Getenv(envPrefix + "CONFIG"); p != "" {
		return p, true
	}
	return defaultConfig, false
}

// dial returns a client of the cluster that KUBECONFIG names, or of the peer on this machine.
func dial() (*admin.Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if os.Getenv("KUBECONFIG") == "" {
		if path, ok := localKubeconfig(); ok {
			rules.ExplicitPath = path
		}
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, fmt.Errorf("no cluster is known here: run this on a peer as root, or set KUBECONFIG to a file that `rookery kubeconfig` printed")
	}
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	if cfg.Host == "" {
		return nil, errors.New("the kubeconfig names no server")
	}
	return &admin.Client{Base: cfg.Host, HTTP: client}, nil
}

// ago writes a duration as people do: 5s, 3m, 2h, 4d.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
