package raftstore

import (
	"encoding/binary"
	"errors"
	"unsafe"
)

// errMalformed says that bytes are not what this package writes.
var errMalformed = errors.New("malformed data")

// decoder reads what the append functions below wrote. It checks every length
// against what is there, so hostile bytes cost no more than their own size. After
// the first error it only returns zero values. Strings and slices alias the input.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b, d.err = nil, errMalformed
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) uint8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) bytes() []byte { return d.take(d.uvarint()) }

func (d *decoder) string() string {
	b := d.bytes()
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// end fails when bytes are left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail()
	}
	return d.err
}

func appendBytes(b, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// appendOps writes: count, then for each kind, key, condition, and for a Put value and life.
func appendOps(b []byte, ops []op) []byte {
	b = binary.AppendUvarint(b, uint64(len(ops)))
	for _, o := range ops {
		b = append(b, byte(o.kind))
		b = appendBytes(b, bytesOf(o.key))
		b = binary.AppendVarint(b, o.cond)
		if o.kind == Put {
			b = appendBytes(b, o.value)
			b = binary.AppendVarint(b, o.life)
		}
	}
	return b
}

// minOpBytes is the least that appendOps writes for an op; it bounds what a
// count can make the decoder allocate.
const minOpBytes = 3

func (d *decoder) ops() []op {
	n := d.uvarint()
	if n > maxOps || n > uint64(len(d.b)/minOpBytes) {
		d.fail()
		return nil
	}
	ops := make([]op, n)
	for i := range ops {
		ops[i] = op{kind: OpKind(d.uint8()), key: d.string(), cond: d.varint()}
		if ops[i].kind == Put {
			ops[i].value, ops[i].life = d.bytes(), d.varint()
		}
		if ops[i].kind > Delete || ops[i].key == "" || ops[i].cond < Any || ops[i].life < 0 {
			d.fail()
		}
		if d.err != nil {
			return nil
		}
	}
	return ops
}

// appendKV writes a key with all that is known of it: key, value, create and
// mod revision, expires.
func appendKV(b []byte, kv *KV) []byte {
	b = appendBytes(b, bytesOf(kv.Key))
	b = appendBytes(b, kv.Value)
	b = binary.AppendVarint(b, kv.CreateRevision)
	b = binary.AppendVarint(b, kv.ModRevision)
	return binary.AppendVarint(b, kv.Expires)
}
