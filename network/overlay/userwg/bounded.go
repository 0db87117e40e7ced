package userwg

import (
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// smallBatch is how many packets the device handles at once, instead of 128: it
// holds that many buffers of 64 kB for each socket and the TUN device, always. 32
// packets of usual size still make one segmentation offload of 44 kB.
const smallBatch = 32

// largest is what the kernel hands over at most where it joins packets.
const largest = 1<<16 - 1

// bounded returns the two ends of a WireGuard device so that it works in small
// batches, and with few packets inside, each direction for itself. The kernel is still
// asked for large batches, into buffers of the packets' real size.
func bounded(t tun.Device, b conn.Bind, mtu int) (tun.Device, conn.Bind) {
	out, in := newInFlight(), newInFlight()
	return &boundedTUN{Device: t, batch: newBatch(t.BatchSize(), mtu), out: out, in: in},
		&boundedBind{Bind: b, mtu: mtu, out: out, in: in}
}

// batch is a large read that is handed out in small ones.
type batch struct {
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
	next  int // first that was not handed out
	n     int
}

func newBatch(n, mtu int) *batch {
	b := &batch{sizes: make([]int, n), eps: make([]conn.Endpoint, n)}
	for i := range n {
		size := max(2048, mtu+256) // room for WireGuard's and the socket's own headers
		if i >= n-2 {
			size = largest // the bind reads what the kernel joined into the last two
		}
		b.bufs = append(b.bufs, make([]byte, size))
	}
	return b
}

// hand copies the next packets out; eps may be nil.
func (b *batch) hand(bufs [][]byte, sizes []int, offset int, eps []conn.Endpoint) int {
	i := 0
	for ; i < len(bufs) && b.next < b.n; i++ {
		sizes[i] = copy(bufs[i][offset:], b.bufs[b.next][:b.sizes[b.next]])
		if eps != nil {
			eps[i] = b.eps[b.next]
		}
		b.next++
	}
	return i
}

type boundedTUN struct {
	tun.Device
	batch   *batch // of the one reader
	out, in *inFlight
}

func (b *boundedTUN) BatchSize() int { return smallBatch }

func (b *boundedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	var err error
	if b.batch.next == b.batch.n {
		b.batch.next = 0
		b.batch.n, err = b.Device.Read(b.batch.bufs, b.batch.sizes, 0)
	}
	n := b.batch.hand(bufs, sizes, offset, nil)
	b.out.enter(n)
	return n, err
}

func (b *boundedTUN) Write(bufs [][]byte, offset int) (int, error) {
	written, err := b.Device.Write(bufs, offset)
	b.in.leave(len(bufs))
	return written, err
}

type boundedBind struct {
	conn.Bind
	mtu     int
	out, in *inFlight
}

func (b *boundedBind) BatchSize() int { return smallBatch }

func (b *boundedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	for i, receive := range fns {
		large := newBatch(b.Bind.BatchSize(), b.mtu) // each function has one caller
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			var err error
			if large.next == large.n {
				large.next = 0
				large.n, err = receive(large.bufs, large.sizes, large.eps)
			}
			n := large.hand(bufs, sizes, 0, eps)
			b.in.enter(n)
			return n, err
		}
	}
	return fns, actual, err
}

func (b *boundedBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(bufs, ep)
	b.out.leave(len(bufs))
	return err
}
