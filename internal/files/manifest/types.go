package manifest

// Kind of a directory entry that a files group keeps.
type Kind uint8

const (
	Absent Kind = iota // no such entry
	File
	Dir
	Symlink
)

// Hash is the BLAKE3-256 of a file's whole content.
type Hash [32]byte

// Node is what a path should be. The zero Node is an absent one.
type Node struct {
	Kind     Kind
	Mode     uint32 // permission, setuid, setgid and sticky bits as in stat(2) & 07777; 0777 for symlinks
	UID, GID uint32
	MTime    int64  // Unix ns
	Size     int64  // files: bytes; else 0
	Hash     Hash   // files only
	Target   string // symlinks only: raw bytes
	Version  uint64 // index of the entry that last changed the node; not part of the digest
}

// Change asks that Path become Node, given that it is at version Base now (0: was absent or never seen).
// Path is relative, '/'-separated raw bytes, cleaned, never "" except for the root directory itself.
type Change struct {
	Path   string
	Base   uint64
	Node   Node   // Kind Absent: delete (a directory must be empty by then, or is deleted with its children: see Apply)
	Inline []byte // a file's content when it rides in the entry; nil when staged
}

// Outcome of one Change, in a result.
type Outcome struct {
	Code    OutcomeCode
	Version uint64 // the path's version after the command
	Copy    string // Conflicted: path under which the loser was kept, if any
}

type OutcomeCode uint8

const (
	Accepted   OutcomeCode = iota // the path is now as asked
	Same                          // it already was
	Conflicted                    // base was not current: the loser of the policy was kept as Copy
	Superseded                    // base was not current and there was nothing to keep (metadata, deletes)
	Refused                       // malformed or impossible (parent missing, not a directory …)
)

// Changed tells the node's placer that a path's desired state is new. Sent after commit, in log order.
type Changed struct {
	Path   string
	Node   Node   // Kind Absent: gone
	Inline []byte // content, when the entry carried it
}
