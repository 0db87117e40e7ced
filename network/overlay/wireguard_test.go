package overlay

import (
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// The kernel says no more of a peer than when it last agreed with it, and how much was sent.
func TestNeverMet(t *testing.T) {
	got := neverMet([]wgtypes.Peer{
		{PublicKey: wgtypes.Key{1}, TransmitBytes: 3 * 148},
		{PublicKey: wgtypes.Key{2}, TransmitBytes: 2 * 148}, // it may answer yet
		{PublicKey: wgtypes.Key{3}},                         // nothing can be sent
		{PublicKey: wgtypes.Key{4}, TransmitBytes: 1 << 20, LastHandshakeTime: time.Unix(1, 0)},
	})
	if !slices.Equal(got, []wgtypes.Key{{1}}) {
		t.Errorf("never met: %v", got)
	}
}
