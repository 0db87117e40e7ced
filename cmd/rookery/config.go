package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/node/spec"
)

const (
	defaultDataDir = "/var/lib/rookery"
	defaultConfig  = "/etc/rookery/config.yaml"
	envPrefix      = "ROOKERY_"
)

// config is how a peer is set up. Every value is a flag of `rookery up`, a key
// of the configuration file and an environment variable (data-dir is
// ROOKERY_DATA_DIR); a flag wins over the environment, that over the file.
// configs/rookery.yaml explains each.
type config struct {
	Name             string
	DataDir          string
	AdvertiseAddress string
	Port             uint16
	GossipPort       uint16
	WireGuardPort    uint16
	Join             string
	Token            string
	PodCIDR          []string // one of each IP family, the first preferred; so ServiceCIDR and ClusterDNS
	ServiceCIDR      []string
	ClusterDNS       []string // empty: the tenth address of each ServiceCIDR
	ClusterDomain    string
	NodePorts        string
	LoadBalancer     []string // ranges of addresses
	Network          string
	PodmanSocket     string
	Names            namesConfig
	Labels           map[string]string
	UnsafeSysctls    []string
	EvictAfter       time.Duration
	LogLevel         string
	AuditLog         string
	AuditPolicy      string
	AuditMaxSize     int
	AuditMaxFiles    int
	OIDC             oidcConfig
	Ingress          ingressConfig
	Images           imageConfig
	Resources        resourcesConfig
}

// flags declares every setting once: name, default and meaning.
func (c *config) flags(f *pflag.FlagSet) {
	host, err := os.Hostname()
	if err != nil {
		host = "" // then --name has to be given, and validate says so
	}
	f.StringVar(&c.Name, "name", strings.ToLower(strings.SplitN(host, ".", 2)[0]), "this peer's name, unique in the cluster")
	f.StringVar(&c.DataDir, "data-dir", defaultDataDir, "where this peer keeps its state")
	f.StringVar(&c.AdvertiseAddress, "advertise-address", "", "address at which the other peers reach this one (default: that of the interface with the default route, or the only one)")
	f.Uint16Var(&c.Port, "port", 6443, "TCP port of the API, Raft and peer traffic")
	f.Uint16Var(&c.GossipPort, "gossip-port", 7946, "TCP and UDP port of gossip")
	f.Uint16Var(&c.WireGuardPort, "wireguard-port", 51820, "UDP port of the pod network's tunnels")
	f.StringVar(&c.Join, "join", "", "HOST or HOST:PORT of any peer of the cluster to join; needed once")
	f.StringVar(&c.Token, "token", "", "token to join with, from `rookery token create`; needed once")
	f.StringSliceVar(&c.PodCIDR, "pod-cidr", []string{"10.42.0.0/16"}, "addresses of pods: an IPv4 network, an IPv6 one, or one of each, whose first is preferred; each peer gets a /24, or a /64. Fixed when the cluster is made")
	f.StringSliceVar(&c.ServiceCIDR, "service-cidr", []string{"10.43.0.0/16"}, "addresses of Services, of the same families as --pod-cidr. Fixed when the cluster is made")
	f.StringSliceVar(&c.ClusterDNS, "cluster-dns", nil, "addresses of the cluster's DNS, local to each peer (default: the tenth of each --service-cidr). Fixed when the cluster is made")
	f.StringVar(&c.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster. Fixed when the cluster is made")
	f.StringVar(&c.NodePorts, "node-ports", "30000-32767", "ports of NodePort Services")
	f.StringVar(&c.Network, "network", "wireguard", "pod network between peers: wireguard (encrypted), vxlan, or direct (all peers on one segment). For a new cluster; `rookery net use` changes it")
	f.StringSliceVar(&c.LoadBalancer, "load-balancer-addresses", nil, "free addresses of the LAN for Services of type LoadBalancer, IPv4 or IPv6: FIRST-LAST, a network or one address; the same on every peer")
	f.StringVar(&c.PodmanSocket, "podman-socket", "/run/podman/podman.sock", "where Podman's API listens")
	c.Names.flags(f)
	f.StringToStringVar(&c.Labels, "labels", nil, "labels of this peer's Node, KEY=VALUE")
	f.StringSliceVar(&c.UnsafeSysctls, "unsafe-sysctls", nil, "namespaced kernel settings that pods on this peer may have beside the safe ones; a name may end in *")
	f.DurationVar(&c.EvictAfter, "evict-after", 5*time.Second, "how long pods stay on a peer that is gone, unless they say otherwise")
	f.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&c.AuditLog, "audit-log", "", "file to write down in who changed what through the API (default: none)")
	f.StringVar(&c.AuditPolicy, "audit-policy", "", "file with an audit.k8s.io/v1 Policy (default: what people and programs change, without contents)")
	f.IntVar(&c.AuditMaxSize, "audit-max-size", 10, "MB of the audit log before it is rotated")
	f.IntVar(&c.AuditMaxFiles, "audit-max-files", 5, "rotated audit logs that are kept")
	c.OIDC.flags(f)
	c.Ingress.flags(f)
	c.Images.flags(f)
	c.Resources.flags(f)
}

// load fills what flags did not set from the environment and the file.
func load(f *pflag.FlagSet, path string, explicit bool, environ []string) error {
	known := map[string]bool{}
	f.VisitAll(func(fl *pflag.Flag) { known[fl.Name] = true })
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		key, ok := strings.CutPrefix(name, envPrefix)
		if !ok || name == envPrefix+"CONFIG" {
			continue
		}
		key = strings.ReplaceAll(strings.ToLower(key), "_", "-")
		if !known[key] {
			return fmt.Errorf("environment variable %s is not a setting%s", name, didYouMean(name, known, func(k string) string {
				return envPrefix + strings.ToUpper(strings.ReplaceAll(k, "-", "_"))
			}))
		}
		if err := set(f, key, value); err != nil {
			return fmt.Errorf("environment variable %s: %w", name, err)
		}
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !explicit {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return loadFile(f, path, data, known)
}

func loadFile(f *pflag.FlagSet, path string, data []byte, known map[string]bool) error {
	var values map[string]any
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("%s is not valid YAML: %w", path, err)
	}
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if !known[k] {
			return fmt.Errorf("%s: unknown key %q%s", path, k, didYouMean(k, known, func(k string) string { return k }))
		}
		text, err := flagText(values[k])
		if err == nil {
			err = set(f, k, text)
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, k, err)
		}
	}
	return nil
}

// set gives a flag a value unless it has one from a stronger source.
func set(f *pflag.FlagSet, name, value string) error {
	fl := f.Lookup(name)
	if fl.Changed {
		return nil
	}
	if err := f.Set(name, value); err != nil {
		return fmt.Errorf("%q is not a valid value: %w", value, errors.Unwrap(err))
	}
	return nil
}

// flagText writes a YAML value as one would on the command line.
func flagText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case []any:
		var parts []string
		for _, e := range v {
			parts = append(parts, fmt.Sprint(e))
		}
		return strings.Join(parts, ","), nil
	case map[string]any:
		var parts []string
		for k, e := range v {
			list, several := e.([]any)
			if !several {
				list = []any{e}
			}
			for _, e := range list {
				parts = append(parts, fmt.Sprintf("%s=%v", k, e))
			}
		}
		sort.SliceStable(parts, func(i, j int) bool { // a list keeps its order
			a, _, _ := strings.Cut(parts[i], "=")
			b, _, _ := strings.Cut(parts[j], "=")
			return a < b
		})
		return strings.Join(parts, ","), nil
	case nil:
		return "", errors.New("it has no value; remove the line to get the default")
	}
	return fmt.Sprint(v), nil
}

// didYouMean names the known key that is nearest to a mistyped one.
func didYouMean(got string, known map[string]bool, show func(string) string) string {
	best, distance := "", 1<<30
	var keys []string
	for k := range known {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if d := levenshtein.Distance(got, show(k), nil); d < distance {
			best, distance = show(k), d
		}
	}
	if best == "" || distance > len(best)/2+1 {
		return "; `rookery up --help` lists the settings"
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// validate refuses what cannot work, in the user's words.
func (c *config) validate() error {
	if c.Name == "" {
		return errors.New("this machine has no hostname: give the peer a --name")
	}
	made, err := c.settings()
	if err != nil {
		return err
	}
	if err := overlay.ValidKind(c.Network); err != nil {
		return fmt.Errorf("--network: %w", err)
	}
	if _, _, err := c.nodePorts(); err != nil {
		return err
	}
	ranges, err := c.balancerAddresses()
	if err != nil {
		return fmt.Errorf("--load-balancer-addresses: %w", err)
	}
	for _, r := range ranges {
		for _, own := range made.Networks() {
			if own.Contains(r.First) || r.Contains(own.Masked().Addr()) {
				return fmt.Errorf("--load-balancer-addresses %s-%s: they have to be of the LAN, not of the cluster's own networks", r.First, r.Last)
			}
		}
	}
	if err := spec.ValidSysctls(c.UnsafeSysctls); err != nil {
		return fmt.Errorf("--unsafe-sysctls: %w", err)
	}
	if _, err := c.Names.server(c.ClusterDomain); err != nil {
		return err
	}
	if _, err := c.Ingress.load(); err != nil {
		return err
	}
	if _, err := c.level(); err != nil {
		return err
	}
	if err := c.Images.validate(); err != nil {
		return err
	}
	if c.EvictAfter < 0 {
		return fmt.Errorf("--evict-after %s is negative", c.EvictAfter)
	}
	if !filepath.IsAbs(c.DataDir) {
		return fmt.Errorf("--data-dir %q is not an absolute path", c.DataDir)
	}
	if _, err := c.Resources.load(); err != nil {
		return err
	}
	_, err = c.OIDC.load()
	return err
}

func (c *config) nodePorts() (first, count int, err error) {
	var last int
	if n, _ := fmt.Sscanf(c.NodePorts, "%d-%d", &first, &last); n != 2 || first < 1 || last < first || last > 65535 {
		return 0, 0, fmt.Errorf("--node-ports %q is not a range such as 30000-32767", c.NodePorts)
	}
	return first, last - first + 1, nil
}

func (c *config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText(bytes.ToUpper([]byte(c.LogLevel))); err != nil {
		return 0, fmt.Errorf("--log-level %q: there are debug, info, warn and error", c.LogLevel)
	}
	return l, nil
}

// networks reads a setting that is a list of networks.
func networks(setting string, list []string) (all []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("--%s %q is not a network such as 192.168.1.0/24", setting, s)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}
