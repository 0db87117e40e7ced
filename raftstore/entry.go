package raftstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// entryVersion is the version of the log format. One that reads it must refuse
// any other: to skip an entry it does not understand would make peers differ.
const entryVersion = 1

const (
	entryBatch byte = 1 // transactions, each answered on its own
	entryTerm  byte = 2 // a new leader's first: all before it is settled
)

// entryHead is version, kind, and the CRC-32C of what follows.
const entryHead = 1 + 1 + 4

// proposalID names a proposal for as long as anybody waits for it: session is
// random for each start of a peer, seq counts.
type proposalID struct{ session, seq uint64 }

// proposal is a transaction on its way through the log.
type proposal struct {
	id  proposalID
	ops []op
}

// entry is the content of a log entry.
type entry struct {
	kind byte
	// term is the term for which it was proposed. It happens only if it also gets
	// into the log in that term, so that a proposer knows that it never will once
	// it has seen an entry of a later term, and may safely propose again.
	term      uint64
	proposals []proposal
}

func (e *entry) encode() []byte {
	size := entryHead + 16
	for _, p := range e.proposals {
		size += proposalBytes(p.ops)
	}
	b := make([]byte, entryHead, size)
	b[0], b[1] = entryVersion, e.kind
	b = binary.AppendUvarint(b, e.term)
	b = binary.AppendUvarint(b, uint64(len(e.proposals)))
	for _, p := range e.proposals {
		b = binary.BigEndian.AppendUint64(b, p.id.session)
		b = binary.BigEndian.AppendUint64(b, p.id.seq)
		b = appendOps(b, p.ops)
	}
	binary.BigEndian.PutUint32(b[2:], checksum(b[entryHead:]))
	return b
}

// decodeEntry reads a log entry. The result aliases b.
func decodeEntry(b []byte) (entry, error) {
	if len(b) == 0 || b[0] != entryVersion {
		return entry{}, versionError("log", b)
	}
	if len(b) < entryHead || binary.BigEndian.Uint32(b[2:]) != checksum(b[entryHead:]) {
		return entry{}, errChecksum
	}
	e := entry{kind: b[1]}
	d := decoder{b: b[entryHead:]}
	e.term = d.uvarint()
	n := d.uvarint()
	if n > uint64(len(d.b)/minProposalBytes) || e.kind != entryBatch && e.kind != entryTerm {
		return entry{}, errMalformed
	}
	e.proposals = make([]proposal, n)
	for i := range e.proposals {
		e.proposals[i] = proposal{id: proposalID{session: d.uint64(), seq: d.uint64()}, ops: d.ops()}
	}
	return e, d.end()
}

// minProposalBytes: an id and the count of no operations.
const minProposalBytes = 8 + 8 + 1

// proposalBytes is at least what a proposal takes in the log.
func proposalBytes(ops []op) int {
	n := minProposalBytes + 2
	for i := range ops {
		n += 1 + 3*binary.MaxVarintLen64 + len(ops[i].key) + len(ops[i].value)
	}
	return n
}

func versionError(what string, b []byte) error {
	if len(b) == 0 {
		return errMalformed
	}
	return fmt.Errorf("the %s has format %d and this program knows only %d: a newer rookery wrote it, start that one", what, b[0], entryVersion)
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}
