package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

func sampleEntry() *entry {
	return &entry{kind: entryBatch, term: 7, proposals: []proposal{
		{id: proposalID{1, 2}, ops: []op{{key: "a", cond: Any, kind: Put, value: []byte("v"), life: 99}, {key: "b", cond: 5, kind: Delete}}},
		{id: proposalID{3, 4}, ops: []op{{key: "c", kind: Check}}},
		{id: proposalID{5, 6}, ops: []op{}},
	}}
}

func sampleImage() *image {
	tx := iradix.New[*KV]().Txn()
	for _, kv := range []*KV{
		{Key: "a", Value: []byte("x"), CreateRevision: 2, ModRevision: 5, Expires: 1234},
		{Key: "b", Value: []byte{}, CreateRevision: 3, ModRevision: 3},
	} {
		tx.Insert([]byte(kv.Key), kv)
	}
	return &image{index: 11, term: 3, revision: 6, tree: tx.Commit()}
}

func TestEntryRoundTrip(t *testing.T) {
	want := sampleEntry()
	got, err := decodeEntry(want.encode())
	if err != nil || !reflect.DeepEqual(&got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestEntryRefusals(t *testing.T) {
	b := sampleEntry().encode()
	newer := bytes.Clone(b)
	newer[0] = 2
	if _, err := decodeEntry(newer); err == nil || !strings.Contains(err.Error(), "newer rookery") {
		t.Errorf("unknown version: %v", err)
	}
	for i := entryHead; i < len(b); i++ {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		if _, err := decodeEntry(bad); !errors.Is(err, errChecksum) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for n := range b {
		if _, err := decodeEntry(b[:n]); err == nil {
			t.Errorf("cut to %d bytes: no error", n)
		}
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	want := sampleImage()
	if err := want.write(&buf); err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	got, err := readImage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if got.index != 11 || got.term != 3 || got.revision != 6 || got.tree.Len() != 2 {
		t.Errorf("%+v", got)
	}
	kv, _ := got.tree.Get([]byte("a"))
	if kv.CreateRevision != 2 || kv.ModRevision != 5 || kv.Expires != 1234 || string(kv.Value) != "x" {
		t.Errorf("%+v", kv)
	}
	for n := range b {
		if _, err := readImage(bytes.NewReader(b[:n])); err == nil {
			t.Errorf("cut to %d bytes: no error", n)
		}
		bad := bytes.Clone(b)
		bad[n] ^= 0x10
		if _, err := readImage(bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d changed: no error", n)
		}
	}
}

// FuzzDecode: whatever the bytes, decoding them ends in a value or an error.
func FuzzDecode(f *testing.F) {
	f.Add(sampleEntry().encode()[entryHead:])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		d := decoder{b: body}
		d.ops()
		if err := d.end(); err != nil && !errors.Is(err, errMalformed) {
			t.Errorf("error %v", err)
		}
		for _, kind := range []byte{entryBatch, entryTerm} {
			b := append([]byte{entryVersion, kind, 0, 0, 0, 0}, body...)
			binary.BigEndian.PutUint32(b[2:], checksum(body))
			if _, err := decodeEntry(b); err != nil && !errors.Is(err, errMalformed) {
				t.Errorf("entry: %v", err)
			}
		}
		head := append([]byte(snapshotMagic), snapshotVersion)
		if _, err := readImage(bytes.NewReader(append(head, body...))); err == nil {
			t.Error("a snapshot without a checksum was read")
		}
	})
}

// TestHostileFrames sends the server what no peer would send: it drops the
// connection and goes on.
func TestHostileFrames(t *testing.T) {
	frame := func(kind byte, body string) string {
		return string(sealFrame(append(newFrame(kind, 1, len(body)), body...)))
	}
	tests := []struct {
		name, send string
		dropped    bool
	}{
		{"wrong greeting", strings.Repeat("x", len(storeGreeting)), true},
		{"huge frame", storeGreeting + "\xff\xff\xff\xff", true},
		{"empty frame", storeGreeting + "\x00\x00\x00\x00", true},
		{"unknown type", storeGreeting + frame(99, ""), true},
		{"a reply", storeGreeting + frame(frameReply, "\x00\x00"), true},
		{"garbage for a transaction", storeGreeting + frame(frameTxn, "garbage"), false},
		{"transaction for another term", storeGreeting + string(txnFrame(1, 99, sampleEntry().proposals[0])), false},
		{"read-index from one that does not lead", storeGreeting + frame(frameReadIndex, ""), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := New(Config{Name: "a", Dir: "unused", Transport: nowhere{}})
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := net.Pipe()
			if err := ours.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			s := &server{r: r}
			go func() { ended <- s.serve(t.Context(), theirs) }()
			go io.WriteString(ours, tt.send)
			if tt.dropped {
				if b, err := io.ReadAll(ours); err != nil || len(b) > 0 {
					t.Errorf("answered %q, %v", b, err)
				}
			} else {
				kind, _, d, err := readFrameOf(ours)
				if err != nil || kind != frameReply || d.uint8() == replyOK {
					t.Errorf("answer of type %d, %v", kind, err)
				}
			}
			ours.Close()
			<-ended
		})
	}
}

func readFrameOf(conn net.Conn) (byte, uint64, decoder, error) {
	return readFrame(conn, bufio.NewReader(conn))
}

type nowhere struct{ Transport }
