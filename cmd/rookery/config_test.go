package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/identity"
)

func settings() (*config, *pflag.FlagSet) {
	var c config
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.flags(f)
	return &c, f
}

func TestSourcesOfSettings(t *testing.T) {
	for _, tt := range []struct {
		name, args, env, file string
		want                  func(*config) bool
		err                   string
	}{
		{name: "file", file: "name: kitchen\nport: 7443\nlabels: {disk: ssd}\nevict-after: 30s\nupstream-dns: [192.0.2.1, 192.0.2.2]",
			want: func(c *config) bool {
				return c.Name == "kitchen" && c.Port == 7443 && c.Labels["disk"] == "ssd" && c.EvictAfter.Seconds() == 30 && len(c.Names.Upstreams) == 2
			}},
		{name: "environment over file", env: "ROOKERY_NAME=attic", file: "name: kitchen", want: func(c *config) bool { return c.Name == "attic" }},
		{name: "flag over environment", args: "--name=cellar", env: "ROOKERY_NAME=attic", want: func(c *config) bool { return c.Name == "cellar" }},
		{name: "mistyped key", file: "podcidr: 10.0.0.0/16", err: `unknown key "podcidr"; did you mean "pod-cidr"?`},
		{name: "mistyped variable", env: "ROOKERY_DATADIR=/x", err: `ROOKERY_DATADIR is not a setting; did you mean "ROOKERY_DATA_DIR"?`},
		{name: "far off", file: "zookeeper: 3", err: "`rookery up --help` lists the settings"},
		{name: "not a number", file: "port: abc", err: `port: "abc" is not a valid value`},
		{name: "no value", file: "port:", err: "it has no value"},
		{name: "not YAML", file: "{", err: "is not valid YAML"},
		{name: "given twice", file: "name: a\nname: b", err: "is not valid YAML"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, f := settings()
			if err := f.Parse(strings.Fields(tt.args)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			err := load(f, path, true, strings.Fields(tt.env))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil || !tt.want(c) {
				t.Errorf("got %+v, %v", c, err)
			}
		})
	}
}

func TestValidateSaysWhatCannotWork(t *testing.T) {
	for args, want := range map[string]string{
		"--pod-cidr=10.0.0.1/16":            "is not a network",
		"--pod-cidr=10.43.0.0/16":           "overlap",
		"--pod-cidr=fd42::/56":              "of different IP families",
		"--pod-cidr=10.42.0.0/16,fd42::/56": "each needs one value, or one for IPv4 and one for IPv6",
		"--pod-cidr=10.42.0.0/25":           "too small",
		"--pod-cidr=10.42.0.0/16,10.44.0.0/16 --service-cidr=10.43.0.0/16,10.45.0.0/16": "of one IP family",
		"--pod-cidr=10.42.0.0/16,fd42::/56 --service-cidr=fd43::/112,10.43.0.0/16":      "in the same order",
		"--pod-cidr=10.42.0.0/16,fd42::/60 --service-cidr=10.43.0.0/16,fd43::/112":      "use a /56",
		"--cluster-dns=192.168.1.1":                         "is not within the service network",
		"--cluster-dns=dns":                                 "is not an IP address",
		"--cluster-dns=10.43.0.10,fd43::a":                  "each needs one value",
		"--load-balancer-addresses=10.0.0.0-10.255.255.255": "of the LAN",
		"--network=flannel":                                 "use wireguard, vxlan or direct",
		"--node-ports=32767-30000":                          "is not a range",
		"--log-level=loud":                                  "debug, info, warn and error",
		"--data-dir=var":                                    "not an absolute path",
		"--evict-after=-1s":                                 "negative",
		"--name=":                                           "--name",

		"--lan-zone=lan.cluster.local":               "overlap",
		"--lan-zone=home@arpa":                       "is not a domain name",
		"--lan-dns=eth0":                             "is not an address of this machine",
		"--lan-clients=192.168.1.1/33":               "is not a network",
		"--lan-rate=-1":                              "negative",
		"--dns-forward=corp.example":                 "is not DOMAIN=SERVER",
		"--dns-forward=corp.example=dc1":             "is not an address",
		"--dns-forward=svc.cluster.local=10.0.0.1":   "cannot be forwarded",
		"--ingress-http=443":                         "are both",
		"--ingress-acme=letsencrypt":                 "is not an https URL",
		"--ingress-acme=https://x --ingress-http=81": "needs --ingress-http 80",
		"--ingress-acme-ca-file=/nowhere":            "no such file",
		"--ingress-max-body=big":                     "is not a size",
		"--ingress-timeout=0s":                       "is not positive",
		"--ingress-trusted-proxies=10.0.0.1":         "is not a network",
		"--upstream-dns=router":                      "is not an address",
	} {
		c, f := settings()
		if err := f.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", args, err, want)
		}
	}
}

// A cluster may have IPv4, IPv6 or both, either of them first.
func TestSettingsOfEachIPFamily(t *testing.T) {
	for args, want := range map[string]string{
		"": "10.42.0.0/16 10.43.0.0/16 10.43.0.10",
		"--pod-cidr=fd42::/56 --service-cidr=fd43::/112":                                                           "fd42::/56 fd43::/112 fd43::a",
		"--pod-cidr=10.42.0.0/16,fd42::/56 --service-cidr=10.43.0.0/16,fd43::/112":                                 "10.42.0.0/16 10.43.0.0/16 10.43.0.10 fd42::/56 fd43::/112 fd43::a",
		"--pod-cidr=fd42::/56,10.42.0.0/16 --service-cidr=fd43::/112,10.43.0.0/16 --cluster-dns=fd43::5,10.43.0.6": "fd42::/56 fd43::/112 fd43::5 10.42.0.0/16 10.43.0.0/16 10.43.0.6",
	} {
		c, f := settings()
		if err := f.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if err := c.validate(); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		s, err := c.settings()
		var got []string
		for _, r := range s.Ranges() {
			got = append(got, r.PodCIDR.String(), r.ServiceCIDR.String(), r.DNS.String())
		}
		if have := strings.Join(got, " "); err != nil || have != want {
			t.Errorf("%s: got %s, %v, want %s", args, have, err, want)
		}
	}
}

func TestAdvertisedAddressThatNobodyReaches(t *testing.T) {
	for _, bad := range []string{"kitchen", "0.0.0.0", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "[fd77::1]"} {
		c := config{AdvertiseAddress: bad}
		if a, err := c.address(t.Context(), identity.DefaultSettings()); err == nil || !strings.Contains(err.Error(), "--advertise-address") {
			t.Errorf("%s: got %v, %v", bad, a, err)
		}
	}
	for _, good := range []string{"192.168.1.10", "fd77::1", "2001:db8::1", "127.0.0.1"} {
		c := config{AdvertiseAddress: good}
		if a, err := c.address(t.Context(), identity.DefaultSettings()); err != nil || a.String() != good {
			t.Errorf("%s: got %v, %v", good, a, err)
		}
	}
}

func TestNodeAddressesBeginWithTheClustersFirstFamily(t *testing.T) {
	v4, v6 := identity.DefaultSettings(), identity.DefaultSettings()
	v6.PodCIDR = netip.MustParsePrefix("fd42::/56")
	for _, c := range []struct {
		address, other string
		made           identity.Settings
		want           string
	}{
		{"10.0.0.1", "", v4, "10.0.0.1 h1"},
		{"10.0.0.1", "fd77::1", v4, "10.0.0.1 fd77::1 h1"},
		{"fd77::1", "10.0.0.1", v4, "10.0.0.1 fd77::1 h1"},
		{"10.0.0.1", "fd77::1", v6, "fd77::1 10.0.0.1 h1"},
		{"fd77::1", "", v6, "fd77::1 h1"},
	} {
		self := cluster.Peer{Name: "h1", Address: netip.MustParseAddr(c.address)}
		if c.other != "" {
			self.OtherAddress = netip.MustParseAddr(c.other)
		}
		var got []string
		for _, a := range nodeAddresses(self, c.made) {
			got = append(got, a.Address)
		}
		if have := strings.Join(got, " "); have != c.want {
			t.Errorf("%+v: got %s", c, have)
		}
	}
}

// The commented file is what users copy: every setting is in it, and nothing else.
func TestCommentedConfigurationIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../configs/rookery.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, f := settings()
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#([a-z-]+):`).FindAllStringSubmatch(string(data), -1) {
		shown[m[1]] = true
		if f.Lookup(m[1]) == nil {
			t.Errorf("configs/rookery.yaml shows %q, which is not a setting", m[1])
		}
	}
	f.VisitAll(func(fl *pflag.Flag) {
		if !shown[fl.Name] {
			t.Errorf("configs/rookery.yaml does not explain %q", fl.Name)
		}
	})
}
