package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// arp speaks the Address Resolution Protocol (RFC 826, RFC 5227) on one device.
type arp struct {
	file *os.File
	mac  net.HardwareAddr
}

// frameLen is Ethernet's header and ARP for IPv4.
const frameLen = 14 + 28

const (
	opRequest = 1
	opReply   = 2
)

func openARP(index int, mac net.HardwareAddr) (*arp, error) {
	fd, err := openPacket(index, mac, unix.ETH_P_ARP)
	if err != nil {
		return nil, err
	}
	return &arp{file: os.NewFile(uintptr(fd), "arp"), mac: mac}, nil
}

// openPacket opens a socket for the frames of one protocol on one device.
func openPacket(index int, mac net.HardwareAddr, ethertype uint16) (fd int, err error) {
	if len(mac) != 6 {
		return 0, errors.New("the device of this machine's address is not Ethernet: nothing can be announced on it")
	}
	proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ethertype))
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
	if err != nil {
		return 0, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: index}); err != nil {
		return 0, errors.Join(fmt.Errorf("bind packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (a *arp) close() error { return a.file.Close() }

// listen is [responder]'s: requests are sent to all.
func (a *arp) listen([]netip.Addr) error { return nil }

// answer is [responder]'s.
func (a *arp) answer(mine func(netip.Addr) bool) error {
	return answer(a.file, func(question []byte) []byte {
		who, whoseMAC, target, ok := request(question)
		if !ok || !mine(target) {
			return nil
		}
		return frame(opReply, a.mac, whoseMAC, target, whoseMAC, who)
	})
}

// announce tells everybody on the segment that the address is here, in both forms that
// are in use: some take note of one only.
func (a *arp) announce(addr netip.Addr) error {
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return errors.Join(
		send(a.file, frame(opRequest, a.mac, all, addr, make(net.HardwareAddr, 6), addr)),
		send(a.file, frame(opReply, a.mac, all, addr, all, addr)),
	)
}

// answer sends what reply makes of each frame, unless that is nil, until the file is closed.
func answer(file *os.File, reply func(frame []byte) []byte) error {
	buf := make([]byte, 256)
	for {
		n, err := file.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue
		case err != nil:
			return fmt.Errorf("read %s: %w", strings.ToUpper(file.Name()), err)
		}
		if f := reply(buf[:n]); f != nil {
			if err := send(file, f); err != nil {
				return err
			}
		}
	}
}

func send(to *os.File, frame []byte) error {
	_, err := to.Write(frame)
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) {
		return nil // who is not there cannot be told; it is said again
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", strings.ToUpper(to.Name()), err)
	}
	return nil
}

// frame is an Ethernet frame from mac to dst that says that sender is at mac.
func frame(op uint16, mac, dst net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	f := make([]byte, 0, frameLen)
	f = append(append(f, dst...), mac...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_ARP)
	f = binary.BigEndian.AppendUint16(f, unix.ARPHRD_ETHER)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_IP)
	f = append(f, 6, 4)
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(append(f, mac...), sender.AsSlice()...)
	return append(append(f, targetMAC...), target.AsSlice()...)
}

// request reads a frame; ok is false for what is no request for an IPv4 address.
func request(f []byte) (who netip.Addr, mac net.HardwareAddr, target netip.Addr, ok bool) {
	if len(f) < frameLen || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_ARP {
		return who, nil, target, false
	}
	p := f[14:]
	if binary.BigEndian.Uint16(p) != unix.ARPHRD_ETHER || binary.BigEndian.Uint16(p[2:]) != unix.ETH_P_IP || p[4] != 6 || p[5] != 4 || binary.BigEndian.Uint16(p[6:]) != opRequest {
		return who, nil, target, false
	}
	mac = append(mac, p[8:14]...)
	return netip.AddrFrom4([4]byte(p[14:18])), mac, netip.AddrFrom4([4]byte(p[24:28])), true
}
