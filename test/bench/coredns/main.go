// Command coredns is CoreDNS with the plugin file and no other: the yardstick of the
// benchmark of names. It is a module of its own, so that nothing of it is in the binary or
// its go.mod.
//
//	coredns -conf COREFILE
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/file"
)

func main() {
	dnsserver.Directives = []string{"file"}
	coremain.Run()
}
