package userwg

import (
	"fmt"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

type burstTUN struct {
	tun.Device
	reads int
}

func (b *burstTUN) BatchSize() int { return 128 }

// Read hands over 100 packets at once that say which they are.
func (b *burstTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range 100 {
		sizes[i] = copy(bufs[i][offset:], fmt.Sprint("packet ", b.reads*100+i))
	}
	b.reads++
	return 100, nil
}

type silentBind struct{ conn.Bind }

func (silentBind) Send([][]byte, conn.Endpoint) error { return nil }

func TestBoundedLosesNothingAndDoesNotHang(t *testing.T) {
	dev, bind := bounded(&burstTUN{}, silentBind{}, 1420)
	bufs, sizes := make([][]byte, dev.BatchSize()), make([]int, dev.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	start, seen := time.Now(), 0
	for seen < 1000 { // nothing is ever sent for the first half: every wait must end
		n, err := dev.Read(bufs, sizes, 16)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if got, want := string(bufs[i][16:16+sizes[i]]), fmt.Sprint("packet ", seen); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
			seen++
		}
		if seen > 500 {
			if err := bind.Send(bufs[:n], nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}
