package volumes

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// Etc is what the files in a pod's /etc are made from.
type Etc struct {
	PodIPs        []string
	ClusterDNS    netip.Addr // invalid: the cluster has none
	ClusterDomain string
	HostHosts     []byte // the host's /etc/hosts, for pods in its network
	HostResolv    []byte // the host's resolv.conf
}

func (m *Manager) etcFile(uid types.UID, name string) string {
	return filepath.Join(m.PodDir(uid), "etc", name)
}

// WriteEtc writes hosts, hostname and resolv.conf in place, for they are bound into
// running containers as files. Unchanged ones are not touched.
func (m *Manager) WriteEtc(pod *v1.Pod, e Etc) error {
	if err := os.MkdirAll(filepath.Join(m.PodDir(pod.UID), "etc"), 0o755); err != nil {
		return fmt.Errorf("create etc: %w", err)
	}
	files := map[string]string{"hosts": hosts(pod, e), "resolv.conf": resolvConf(pod, e)}
	if !pod.Spec.HostNetwork {
		name, err := spec.Nodename(pod, e.ClusterDomain)
		if err != nil {
			return err
		}
		files["hostname"] = name + "\n"
	}
	for name, content := range files {
		path := m.etcFile(pod.UID, name)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, []byte(content)) {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("chmod %s: %w", name, err)
		}
	}
	return nil
}

func hosts(pod *v1.Pod, e Etc) string {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.Write(e.HostHosts)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		names := spec.Hostname(pod)
		if fqdn := spec.FQDN(pod, e.ClusterDomain); fqdn != "" {
			names = fqdn + "\t" + names
		}
		for _, ip := range e.PodIPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, names)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.String()
}

// The limits of the resolver in libc that Kubernetes keeps to.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048 // of all of them in one line
)

func resolvConf(pod *v1.Pod, e Etc) string {
	servers, searches, options := parseResolv(e.HostResolv)
	policy := pod.Spec.DNSPolicy
	if policy == v1.DNSClusterFirst && pod.Spec.HostNetwork || !e.ClusterDNS.IsValid() && policy != v1.DNSNone {
		policy = v1.DNSDefault
	}
	switch policy {
	case v1.DNSNone:
		servers, searches, options = nil, nil, nil
	case v1.DNSDefault:
	default: // ClusterFirst, ClusterFirstWithHostNet
		servers = []string{e.ClusterDNS.String()}
		svc := "svc." + e.ClusterDomain
		searches = append([]string{pod.Namespace + "." + svc, svc, e.ClusterDomain}, searches...)
		options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		servers = append(servers, c.Nameservers...)
		searches = append(searches, c.Searches...)
		for _, o := range c.Options {
			options = slices.DeleteFunc(options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			if o.Value != nil && *o.Value != "" {
				options = append(options, o.Name+":"+*o.Value)
			} else {
				options = append(options, o.Name)
			}
		}
	}
	servers, searches = unique(servers, maxNameservers), unique(searches, maxSearches)
	for len(strings.Join(searches, " ")) > maxSearchChars {
		searches = searches[:len(searches)-1]
	}
	var b strings.Builder
	if len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

func parseResolv(conf []byte) (servers, searches, options []string) {
	for line := range strings.Lines(string(conf)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, fields[1])
		case "search":
			searches = fields[1:]
		case "options":
			options = fields[1:]
		}
	}
	return servers, searches, options
}

func unique(in []string, limit int) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) && len(out) < limit {
			out = append(out, s)
		}
	}
	return out
}
