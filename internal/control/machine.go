package control

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// maxAudit bounds the audit trail.
const maxAudit = 1000

// The keys: one tag byte, then an id (big-endian, so that ids sort).
const (
	tagAudit   = 'a' // + sequence number
	tagCluster = 'c'
	tagGroup   = 'g' // + id
	tagNode    = 'n' // + id
	tagToken   = 't' // + id
)

// Machine implements machine.Machine.
type Machine struct {
	// changed gets the state after every committed batch that touched it, on the applier's goroutine.
	changed func(*State)
	next    *State // not yet committed; nil: unchanged
}

// New makes a machine; changed must not block.
func New(changed func(*State)) *Machine { return &Machine{changed: changed} }

// Apply executes one command.
func (m *Machine) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	c, err := decodeCommand(cmd.Payload)
	if err != nil {
		return encodeResult(Result{Error: &api.Error{Code: api.CodeUsage, Op: "control", Why: err.Error()}})
	}
	s, err := Load(tx, cmd.Index)
	if err != nil {
		return nil, err
	}
	x := &execution{tx: tx, s: s, now: time.Unix(0, cmd.Time).UTC(), index: cmd.Index}
	result, err := x.run(c)
	if err != nil {
		return nil, err
	}
	if result.Error == nil && x.what != "" {
		if err := x.audit(c.By); err != nil {
			return nil, err
		}
	}
	if x.wrote {
		if m.next, err = Load(tx, cmd.Index); err != nil {
			return nil, err
		}
	}
	return encodeResult(result)
}

// Committed publishes the state if it changed.
func (m *Machine) Committed(uint64) {
	if m.next != nil {
		m.changed(m.next)
		m.next = nil
	}
}

// Restored publishes what was found or installed.
func (m *Machine) Restored(r kv.Reader, index uint64) error {
	s, err := Load(r, index)
	if err != nil {
		return err
	}
	m.next = nil
	m.changed(s)
	return nil
}

// Digest is over all keys and values in order.
func (m *Machine) Digest(tx kv.Tx) (machine.Digest, error) {
	h := blake3.New()
	var n [8]byte
	err := tx.Scan(nil, nil, func(k, v []byte) error {
		for _, b := range [][]byte{k, v} {
			binary.BigEndian.PutUint64(n[:], uint64(len(b)))
			h.Write(n[:])
			h.Write(b)
		}
		return nil
	})
	var d machine.Digest
	h.Sum(d[:0])
	return d, err
}

// Load reads the whole state. It is small: some hundred bytes a node, group and token.
func Load(r kv.Reader, index uint64) (*State, error) {
	s := &State{Index: index}
	err := r.Scan(nil, nil, func(k, v []byte) error {
		switch k[0] {
		case tagCluster:
			return json.Unmarshal(v, &s.Cluster)
		case tagNode:
			return appendJSON(&s.Nodes, v)
		case tagGroup:
			return appendJSON(&s.Groups, v)
		case tagToken:
			return appendJSON(&s.Tokens, v)
		case tagAudit:
			return appendJSON(&s.Audit, v)
		}
		return nil // of a newer version
	})
	if err != nil {
		return nil, fmt.Errorf("control: load state: %w", err)
	}
	return s, nil
}

func appendJSON[T any](list *[]T, v []byte) error {
	var x T
	if err := json.Unmarshal(v, &x); err != nil {
		return err
	}
	*list = append(*list, x)
	return nil
}

func idKey(tag byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tag}, id)
}
