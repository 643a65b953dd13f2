package logstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The oracle keeps one Pebble database. Keys: m (the format), g GROUP KIND (start, hard state, configuration), e GROUP
// INDEX (an entry); numbers in them are big-endian, and every record has a checksum over its key and itself.

const (
	formatKey   = "m"
	formatValue = "lockstep log 1"

	entryPrefix = 'e'
	groupPrefix = 'g'

	kindConf  = 'c'
	kindHard  = 'h'
	kindStart = 's'

	entryKeyLen = 1 + 8 + 8
	groupKeyLen = 1 + 8 + 1
)

func putEntryKey(key []byte, group, index uint64) {
	key[0] = entryPrefix
	binary.BigEndian.PutUint64(key[1:], group)
	binary.BigEndian.PutUint64(key[9:], index)
}

func entryKey(group, index uint64) []byte {
	key := make([]byte, entryKeyLen)
	putEntryKey(key, group, index)
	return key
}

func groupKey(group uint64, kind byte) []byte {
	key := make([]byte, groupKeyLen)
	key[0] = groupPrefix
	binary.BigEndian.PutUint64(key[1:], group)
	key[9] = kind
	return key
}

// checksum binds a record to its key: a record in the wrong place is damage too.
func checksum(key, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
}

func entryValueLen(e *raftpb.Entry) int {
	return 4 + 1 + uvarintLen(e.GetTerm()) + len(e.Data)
}

// putEntry fills value, which has entryValueLen(e) bytes.
func putEntry(key, value []byte, e *raftpb.Entry) {
	head := byte(e.GetType()) & headType
	if e.Type != nil {
		head |= headHasType
	}
	if e.Data != nil {
		head |= headHasData
	}
	value[4] = head
	n := 5 + binary.PutUvarint(value[5:], e.GetTerm())
	copy(value[n:], e.Data)
	binary.LittleEndian.PutUint32(value, checksum(key, value[4:]))
}

// decodeEntry makes an entry that shares nothing with key and value. Errors wrap errRecord.
func decodeEntry(key, value []byte) (*raftpb.Entry, error) {
	term, data, err := checkEntry(key, value)
	if err != nil {
		return nil, err
	}
	h := &heldEntry{term: term, index: binary.BigEndian.Uint64(key[9:])}
	h.entry.Term, h.entry.Index = &h.term, &h.index
	if value[4]&headHasType != 0 {
		h.typ = raftpb.EntryType(value[4] & headType)
		h.entry.Type = &h.typ
	}
	if value[4]&headHasData != 0 {
		h.entry.Data = append(make([]byte, 0, len(data)), data...)
	}
	return &h.entry, nil
}

// checkEntry verifies a record and returns its term and its data, which shares value's memory.
func checkEntry(key, value []byte) (term uint64, data []byte, err error) {
	if len(key) != entryKeyLen || key[0] != entryPrefix {
		return 0, nil, fmt.Errorf("%w: key %x", errRecord, key)
	}
	if len(value) < 6 || binary.LittleEndian.Uint32(value) != checksum(key, value[4:]) {
		return 0, nil, fmt.Errorf("%w: checksum of entry %d", errRecord, binary.BigEndian.Uint64(key[9:]))
	}
	term, n := binary.Uvarint(value[5:])
	data = value[5+max(n, 0):]
	head := value[4]
	if n <= 0 || head&^(headType|headHasType|headHasData) != 0 || head&headHasData == 0 && len(data) > 0 ||
		head&headHasType == 0 && head&headType != 0 {
		return 0, nil, fmt.Errorf("%w: fields of entry %d", errRecord, binary.BigEndian.Uint64(key[9:]))
	}
	return term, data, nil
}

// sealed returns the record of body under key.
func sealed(key, body []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), checksum(key, body)), body...)
}

func unseal(key, value []byte) (body []byte, err error) {
	if len(value) < 4 || binary.LittleEndian.Uint32(value) != checksum(key, value[4:]) {
		return nil, fmt.Errorf("%w: checksum of %q", errRecord, key)
	}
	return value[4:], nil
}

func uvarints(vs ...uint64) (b []byte) {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func encodeStart(key []byte, index, term uint64) []byte { return sealed(key, uvarints(index, term)) }

func decodeStart(key, value []byte) (index, term uint64, err error) {
	body, err := unseal(key, value)
	if err == nil {
		body, err = takeUvarints(body, &index, &term)
	}
	if err == nil && len(body) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", errRecord, len(body))
	}
	return index, term, err
}

func encodeHard(key []byte, h hardState) []byte {
	return sealed(key, uvarints(h.term, h.vote, h.commit))
}

func decodeHard(key, value []byte) (h hardState, err error) {
	body, err := unseal(key, value)
	if err == nil {
		body, err = takeUvarints(body, &h.term, &h.vote, &h.commit)
	}
	if err == nil && len(body) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", errRecord, len(body))
	}
	return h, err
}

func encodeConf(key []byte, index uint64, cs *raftpb.ConfState) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(uvarints(index), raftpb.EnsureConfState(cs))
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return sealed(key, body), nil
}

func decodeConf(key, value []byte) (index uint64, cs *raftpb.ConfState, err error) {
	body, err := unseal(key, value)
	if err == nil {
		body, err = takeUvarints(body, &index)
	}
	if err != nil {
		return 0, nil, err
	}
	cs = &raftpb.ConfState{}
	if err := proto.Unmarshal(bytes.Clone(body), cs); err != nil {
		return 0, nil, fmt.Errorf("%w: configuration: %w", errRecord, err)
	}
	return index, cs, nil
}
