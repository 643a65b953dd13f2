package core

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// minProposalBytes is the size of the smallest encoded proposal: no session, empty payload.
const minProposalBytes = 2

// ErrBatch wraps every error of DecodeBatch.
var ErrBatch = errors.New("malformed batch")

// EncodeBatch returns the payload of an entry:
//
//	level, proposer, id, time, number of proposals, then of each proposal
//	flags, [client (16 bytes), seq, floor], payload length, payload
//
// Flags: 1 has a session, 2 is the engine's own, 4 is answered as soon as the leader's log has it. Numbers are
// unsigned varints, time is a signed one. The level comes first whatever follows: a later one may change the rest.
func EncodeBatch(b *Batch) []byte {
	size := 5 * binary.MaxVarintLen64
	for i := range b.Proposals {
		size += proposalBytes(&b.Proposals[i])
	}
	out := make([]byte, 0, size)
	out = binary.AppendUvarint(out, max(b.Level, FirstLevel))
	out = binary.AppendUvarint(out, b.Proposer)
	out = binary.AppendUvarint(out, b.ID)
	out = binary.AppendVarint(out, b.Time)
	out = binary.AppendUvarint(out, uint64(len(b.Proposals)))
	for i := range b.Proposals {
		p := &b.Proposals[i]
		flags := flagsOf(p)
		out = append(out, flags)
		if flags&flagSession != 0 {
			out = append(out, p.Client[:]...)
			out = binary.AppendUvarint(out, p.Seq)
			out = binary.AppendUvarint(out, p.Floor)
		}
		out = binary.AppendUvarint(out, uint64(len(p.Payload)))
		out = append(out, p.Payload...)
	}
	return out
}

// Flags of an encoded proposal.
const (
	flagSession = 1 << iota
	flagEngine
	flagLocal
	flagsEnd
)

func flagsOf(p *Proposal) (flags byte) {
	if p.Client != ([16]byte{}) {
		flags |= flagSession
	}
	if p.Engine {
		flags |= flagEngine
	}
	if p.Ack == AckLocal {
		flags |= flagLocal
	}
	return flags
}

// proposalBytes is an upper bound of a proposal's encoded size.
func proposalBytes(p *Proposal) int {
	return 1 + 16 + 3*binary.MaxVarintLen64 + len(p.Payload)
}

// BatchLevel reads a batch's level alone, which is all that a program of a lower one may read. Errors wrap ErrBatch.
func BatchLevel(data []byte) (uint64, error) {
	d := decoder{rest: data}
	level := d.uvarint()
	if d.bad || level < FirstLevel {
		return 0, fmt.Errorf("decode batch: level %d of %d bytes: %w", level, len(data), ErrBatch)
	}
	return level, nil
}

// DecodeBatch is the inverse of EncodeBatch. The payloads share data's memory, which must not change. Whether the
// level is one that this program knows is for the caller to ask first, see BatchLevel. Errors wrap ErrBatch.
func DecodeBatch(data []byte) (Batch, error) {
	if _, err := BatchLevel(data); err != nil {
		return Batch{}, err
	}
	d := decoder{rest: data}
	b := Batch{Level: d.uvarint(), Proposer: d.uvarint(), ID: d.uvarint(), Time: d.varint()}
	n := d.uvarint()
	if d.bad || n > uint64(len(d.rest)/minProposalBytes) {
		return Batch{}, fmt.Errorf("decode batch: header of %d bytes: %w", len(data), ErrBatch)
	}
	if n > 0 {
		b.Proposals = make([]Proposal, n)
	}
	for i := range b.Proposals {
		p := &b.Proposals[i]
		flags := d.byte()
		d.bad = d.bad || flags >= flagsEnd
		if flags&flagSession != 0 {
			copy(p.Client[:], d.bytes(16))
			p.Seq, p.Floor = d.uvarint(), d.uvarint()
			d.bad = d.bad || p.Client == ([16]byte{}) // which is no session
		}
		p.Engine = flags&flagEngine != 0
		if flags&flagLocal != 0 {
			p.Ack = AckLocal
		}
		p.Payload = d.bytes(d.uvarint())
		if d.bad {
			return Batch{}, fmt.Errorf("decode batch: proposal %d of %d: %w", i, n, ErrBatch)
		}
	}
	if len(d.rest) > 0 {
		return Batch{}, fmt.Errorf("decode batch: %d bytes too many: %w", len(d.rest), ErrBatch)
	}
	return b, nil
}

// decoder reads from the front of rest; after the first error everything is zero and bad is set.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bytes(n uint64) []byte {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	out := d.rest[:n:n]
	d.rest = d.rest[n:]
	return out
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	return advance(d, v, n)
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	return advance(d, v, n)
}

func advance[T int64 | uint64](d *decoder, v T, n int) T {
	if d.bad || n <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}
