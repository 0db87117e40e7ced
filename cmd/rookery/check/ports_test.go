package check

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	local, nowhere := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.53")
	for _, tt := range []struct {
		port  Port
		level Level
		found string
	}{
		{Port{Network: "tcp", Number: port, Or: "choose another"}, Fatal, "in use by another program"},
		{Port{Network: "tcp", Address: local, Number: port, Or: "choose another", Without: "something is not there"}, Warn, "another program; something is not there"},
		{Port{Network: "tcp", Address: nowhere, Number: port}, OK, "free"}, // also an address that the machine does not have
		{Port{Network: "udp", Address: nowhere, Number: port}, OK, "free"},
	} {
		f := Ports([]Port{tt.port})[0]
		if f.Level != tt.level || !strings.Contains(f.Found, tt.found) || (f.Level == OK) != (f.Cure == "") {
			t.Errorf("%+v: %+v", tt.port, f)
		}
	}
}
