// Package backup is the format of a backup: one file that holds a cluster's description, and of each group of files
// the state of its manifest at one position together with every content that the manifest names, once. It writes and
// reads streams and verifies every byte; docs/en/formats/backup.md describes the bytes.
//
// It knows nothing of groups that run: where the state comes from and where it goes is the business of package server.
// It starts no goroutine, and a value of its types is for one goroutine.
package backup

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Level of the format that is written; lower ones are read, higher ones are not. Level 1 is like level 2, but a state in
// it may be in a snapshot's form of before, which who reads the state has to tell.
const Level = 2

const magic = "LOCKSTEP BACKUP\n"

// A record is: kind u8, length of the body u32 big-endian, body.
type kind uint8

const (
	kindHeader     kind = 'H' // JSON of Header
	kindPart       kind = 'P' // JSON of Part: a part begins; Data follows, then End
	kindData       kind = 'D' // bytes of the part or content that was begun
	kindEnd        kind = 'Q' // BLAKE3 of the part's bytes
	kindContent    kind = 'C' // hash (32), size u64: a content begins; Data follows, then Verdict
	kindVerdict    kind = 'V' // u8: 1 the content is complete, 0 it was given up and counts as not there
	kindGroup      kind = 'G' // nothing: the end of what a member sends of one group; never in a file
	kindIndex      kind = 'I' // JSON of Index
	kindTrailer    kind = 'T' // BLAKE3 of everything before this record
	kindAbort      kind = 'X' // JSON of Aborted: the writer gave up
	recordHead          = 5
	maxData             = 1 << 20
	maxDescription      = 16 << 20 // of a JSON body
)

// What is wrong with a backup; each wraps into an error that says where.
var (
	ErrNotBackup = errors.New("this is no backup")
	ErrNewer     = errors.New("the backup is of a newer version")
	ErrTruncated = errors.New("the backup is cut short")
	ErrDamaged   = errors.New("the backup is damaged")
	ErrAborted   = errors.New("the backup was not finished")
)

// Hash is a BLAKE3-256. In JSON it is hexadecimal.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(h[:], b); err != nil || n != len(h) || len(b) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("%q is no hash", b)
	}
	return nil
}

// Header stands at the begin.
type Header struct {
	Level   int       `json:"level"`
	Cluster string    `json:"cluster"`
	Node    string    `json:"node"` // that wrote it
	Version string    `json:"version"`
	Created time.Time `json:"created"`
	Groups  []string  `json:"groups"`
	Bytes   uint64    `json:"bytes"` // of contents, roughly: for progress
}

// Kinds of parts.
const (
	PartControl = "control" // JSON of Cluster
	PartState   = "state"   // a group's snapshot, in the engine's format (docs/en/formats/state.md)
)

// Part describes a part; Length and Digest are known at its end, Offset once it stands in a file.
type Part struct {
	Kind     string   `json:"kind"`
	Group    string   `json:"group,omitempty"`
	Position Position `json:"position,omitzero"`
	Level    uint64   `json:"level,omitempty"` // cluster level of a state; 0: the first
	Settings Settings `json:"settings,omitzero"`
	Members  []Member `json:"members,omitempty"`
	Tree     Hash     `json:"tree,omitzero"` // digest of what the directory holds
	Files    uint64   `json:"files,omitempty"`
	Bytes    uint64   `json:"bytes,omitempty"`
	Offset   uint64   `json:"offset"`
	Length   uint64   `json:"length"`
	Digest   Hash     `json:"digest"`
}

// Position in a group's log.
type Position struct {
	History string `json:"history"` // 32 hex digits
	Term    uint64 `json:"term"`
	Index   uint64 `json:"index"`
}

// Settings of a group.
type Settings struct {
	Ack      string `json:"ack,omitempty"`
	Conflict string `json:"conflict,omitempty"`
	Mode     string `json:"mode,omitempty"`
	Topology string `json:"topology,omitempty"`
}

// Member is where a group was kept.
type Member struct {
	Node string `json:"node"`
	Path string `json:"path"`
}

// Cluster is the control part: what is worth knowing of the cluster, without its secrets.
type Cluster struct {
	ID     string          `json:"id"`
	Index  uint64          `json:"index"` // of the control group, which every group's position is not before
	Nodes  []Node          `json:"nodes"`
	Groups []Group         `json:"groups"`
	Audit  json.RawMessage `json:"audit,omitempty"`
}

// Node of a cluster.
type Node struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Removed bool   `json:"removed,omitempty"`
}

// Group of a cluster.
type Group struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Settings Settings `json:"settings"`
	Members  []Member `json:"members"`
}

// Index stands near the end and lists what the file holds.
type Index struct {
	Parts         []Part `json:"parts"`
	Contents      uint64 `json:"contents"`       // complete ones
	ContentBytes  uint64 `json:"content_bytes"`  // of those
	ContentDigest Hash   `json:"content_digest"` // BLAKE3 of their hashes, in the file's order
}

// Part returns the part of a kind and group.
func (x *Index) Part(kind, group string) (*Part, bool) {
	for i := range x.Parts {
		if p := &x.Parts[i]; p.Kind == kind && p.Group == group {
			return p, true
		}
	}
	return nil, false
}

// Groups lists the groups whose state the file holds.
func (x *Index) Groups() (names []string) {
	for _, p := range x.Parts {
		if p.Kind == PartState {
			names = append(names, p.Group)
		}
	}
	return names
}

// Aborted says why a writer gave up.
type Aborted struct {
	Why string `json:"why"`
}
