// Package sysctl sets what the kernel lets one set under /proc/sys, in the network
// namespace of the calling thread. Packages network and overlay call it for their devices.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const root = "/proc/sys"

// Get returns a value, by its name with slashes; fs.ErrNotExist where the kernel has none.
func Get(name string) (string, error) {
	have, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return "", fmt.Errorf("read setting %s: %w", dotted(name), err)
	}
	return strings.TrimSpace(string(have)), nil
}

// Set sets a value unless it is that already, so that a read-only /proc/sys is fine
// where the administrator has set it.
func Set(name, value string) error {
	have, err := Get(name)
	if err != nil || have == value {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s: %w; set it yourself before the start: sysctl -w %s=%s", dotted(name), err, dotted(name), value)
	}
	return nil
}

func dotted(name string) string { return strings.ReplaceAll(name, "/", ".") }

// Device prepares a device of ours. Without ipv6 the device is kept free of it, and a
// kernel that has none is fine. With it the device has the addresses that it is given and
// no others: none of its own making, and nobody's advertisement configures it.
func Device(name string, ipv6 bool) error {
	conf := "net/ipv6/conf/" + name + "/"
	if !ipv6 {
		err := Set(conf+"disable_ipv6", "1")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	const none = "1" // IN6_ADDR_GEN_MODE_NONE
	for _, s := range []struct{ name, value string }{
		// Before IPv6 comes on, or the device would have made itself an address already.
		{"addr_gen_mode", none}, {"accept_ra", "0"}, {"autoconf", "0"}, {"accept_redirects", "0"}, {"disable_ipv6", "0"},
	} {
		if err := Set(conf+s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// Forward lets the machine forward packets of an IP family. A machine that forwards
// IPv6 takes router advertisements no more unless it is told so explicitly, and would
// lose the default route that it has from them; so what took them before does so on.
func Forward(ipv6 bool) error {
	if !ipv6 {
		return Set("net/ipv4/ip_forward", "1")
	}
	const all = "net/ipv6/conf/all/forwarding"
	on, err := Get(all)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("this machine's kernel runs without IPv6, but the cluster's pods have IPv6 addresses: start it without ipv6.disable=1")
	}
	if err != nil || on == "1" {
		return err
	}
	devices, err := os.ReadDir(filepath.Join(root, "net/ipv6/conf"))
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, d := range devices { // with "default", which new devices begin with
		conf := "net/ipv6/conf/" + d.Name() + "/"
		if d.Name() == "all" {
			continue
		}
		accept, err := Get(conf + "accept_ra")
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the device may be gone by now
			return err
		}
		if forwards, err := Get(conf + "forwarding"); accept != "1" || err != nil || forwards != "0" {
			continue
		}
		if err := Set(conf+"accept_ra", "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return Set(all, "1")
}
