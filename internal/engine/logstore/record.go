package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Head byte of an entry record: the type, and which optional fields were present, so that an entry comes
// back exactly as raft handed it out.
const (
	headType    = 0x0f
	headHasType = 0x40
	headHasData = 0x80
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRecord = errors.New("malformed record")

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// heldEntry is an entry and what its pointers point to, in one allocation.
type heldEntry struct {
	entry       raftpb.Entry
	term, index uint64
	typ         raftpb.EntryType
}

// takeUvarints reads the numbers that b starts with and returns what follows them.
func takeUvarints(b []byte, into ...*uint64) (rest []byte, err error) {
	for _, p := range into {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("%w: number", errRecord)
		}
		*p, b = v, b[n:]
	}
	return b, nil
}

// hardState is raftpb.HardState by value.
type hardState struct{ term, vote, commit uint64 }

func hardStateOf(hs *raftpb.HardState) hardState {
	return hardState{hs.GetTerm(), hs.GetVote(), hs.GetCommit()}
}

// initial is what raft may start with: everything up to the log's start is committed, and a term that this
// replica has an entry of was reached, even if its log was reset to a snapshot before it heard of the term.
func (h hardState) initial(start, lastTerm uint64) *raftpb.HardState {
	h.commit = max(h.commit, start)
	if h.term < lastTerm {
		h.term, h.vote = lastTerm, 0
	}
	return &raftpb.HardState{Term: proto.Uint64(h.term), Vote: proto.Uint64(h.vote), Commit: proto.Uint64(h.commit)}
}

// entrySize is proto.Size(e) without reflection: what raft counts against its size limits.
func entrySize(e *raftpb.Entry) uint64 {
	n := 0
	if e.Type != nil {
		n += 1 + uvarintLen(uint64(int64(*e.Type)))
	}
	if e.Term != nil {
		n += 1 + uvarintLen(*e.Term)
	}
	if e.Index != nil {
		n += 1 + uvarintLen(*e.Index)
	}
	if e.Data != nil {
		n += 1 + uvarintLen(uint64(len(e.Data))) + len(e.Data)
	}
	return uint64(n)
}
