package nft

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Only what the kernel says itself tells that nothing was done.
func TestRefusal(t *testing.T) {
	message := func(errno unix.Errno) []byte {
		b := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+4)
		b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
		b = append(b, make([]byte, 10)...)
		return binary.NativeEndian.AppendUint32(b, uint32(-int32(errno)))
	}
	for _, c := range []struct {
		name          string
		answer        []byte
		done, refused bool
	}{
		{"consent", message(0), true, false},
		{"refused", message(unix.ENOENT), false, true},
		{"no answer", nil, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[0])
			defer unix.Close(pair[1])
			if c.answer != nil {
				if err := unix.Sendto(pair[1], c.answer, 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			err = answers(pair[0])
			if (err == nil) != c.done || errors.As(err, &refusal{}) != c.refused {
				t.Errorf("%v", err)
			}
		})
	}
}
