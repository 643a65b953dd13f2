package manifest

import "encoding/hex"

// Kind of a directory entry that a files group keeps.
type Kind uint8

const (
	Absent Kind = iota // no such entry
	File
	Dir
	Symlink
)

func (k Kind) String() string {
	switch k {
	case Absent:
		return "absent"
	case File:
		return "file"
	case Dir:
		return "dir"
	case Symlink:
		return "symlink"
	}
	return "invalid"
}

// Hash is the BLAKE3-256 of a file's whole content.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Node is what a path should be. The zero Node is an absent one.
type Node struct {
	Kind     Kind
	Mode     uint32 // permission, setuid, setgid and sticky bits as in stat(2) & 07777; 0777 for symlinks
	UID, GID uint32
	MTime    int64  // Unix ns
	Size     int64  // files: bytes; else 0
	Hash     Hash   // files only
	Target   string // symlinks only: raw bytes
	Version  uint64 // index of the entry that last changed the node; not part of the tree digest
}

// Equal reports whether n and o describe the same entry; Version does not count.
func (n Node) Equal(o Node) bool {
	n.Version = o.Version
	return n == o
}

// SameContent reports whether n and o are of one kind and hold the same bytes (a symlink's are its target).
func (n Node) SameContent(o Node) bool {
	return n.Kind == o.Kind && n.Size == o.Size && n.Hash == o.Hash && n.Target == o.Target
}

// Change asks that Path become Node, given that it is at version Base now (0: was absent or never seen).
// Path is relative, '/'-separated raw bytes, cleaned, never "" except for the root directory itself.
type Change struct {
	Path   string
	Base   uint64
	Node   Node   // Kind Absent: delete; a directory must be empty by then, so order children first
	Inline []byte // a file's content when it rides in the entry; nil when staged
	// SameContent says that only metadata differs from version Base and that the content was not sent along:
	// if Base is not current, the change must not need the content, which may be nowhere any more.
	// Of the root it says that its time is all that the author has changed: mode and owner stay what they are.
	SameContent bool
}

// Outcome of one Change, in a result.
type Outcome struct {
	Code    OutcomeCode
	Version uint64 // the path's version after the command; 0: absent
	Copy    string // path under which the loser of a conflict was kept, if there was one
}

type OutcomeCode uint8

const (
	Accepted   OutcomeCode = iota // the path is now as asked (Copy: a concurrent version was kept there)
	Same                          // it already was
	Conflicted                    // base was not current and the change lost: it was kept as Copy
	Superseded                    // base was not current and there was nothing to keep (metadata, deletes)
	Refused                       // malformed or impossible: invalid or reserved path, invalid node
)

func (c OutcomeCode) String() string {
	switch c {
	case Accepted:
		return "accepted"
	case Same:
		return "same"
	case Conflicted:
		return "conflicted"
	case Superseded:
		return "superseded"
	case Refused:
		return "refused"
	}
	return "invalid"
}

// Changed tells the node's placer that a path's desired state is new. Sent after commit, in log order.
type Changed struct {
	Path   string
	Node   Node   // Kind Absent: gone
	Inline []byte // content, when the entry carried it
	// From, when set, is the path that held this content until now and is about to be replaced (the next
	// event): placers bring Path to disk before they touch From, as its content may be nowhere else.
	From string
}

// Stats are the counters of a manifest.
type Stats struct {
	Files, Bytes   uint64
	Dirs, Symlinks uint64 // the root directory does not count
	Conflicts      uint64 // recorded since the group was created
}

// Conflict is one entry of the conflict log.
type Conflict struct {
	Path  string
	Copy  string
	Node  string // who wrote the copy
	Time  int64  // Unix ns, the leader's clock
	Index uint64 // the entry that settled it
}
