package api

// LogDump is what lies in the log store of a stopped node.
type LogDump struct {
	Data     string       `json:"data"`
	Refused  string       `json:"refused,omitempty"` // why a start would not use the store at all
	Segments []LogSegment `json:"segments"`
	Unnamed  string       `json:"unnamed,omitempty"` // why groups have no names here
}

// LogFilter says what of a log store is dumped; zero: all of it.
type LogFilter struct {
	Group   string // name or id
	Segment string // sequence number or file name
}

// LogSegment is one file of the ring.
type LogSegment struct {
	File    string `json:"file"`
	Bytes   uint64 `json:"bytes"`
	Segment uint64 `json:"segment"` // its sequence number; 0: never used, or nothing in it can be read
	// Part is current, previous, full (it has entries that count), spare (nothing in it counts), or unknown.
	Part       string     `json:"part"`
	FirstBatch uint64     `json:"first_batch"`
	LastBatch  uint64     `json:"last_batch"`
	Live       uint64     `json:"live"` // bytes of entries that count
	Old        int        `json:"old"`  // frames that are left of an earlier use of the file; they are not listed
	Frames     []LogFrame `json:"frames"`
}

// LogFrame is what lies at one place of a segment.
type LogFrame struct {
	Offset   uint64       `json:"offset"`
	Bytes    uint64       `json:"bytes"`
	Kind     string       `json:"kind"` // head, batch, mark or unreadable
	Batch    uint64       `json:"batch,omitempty"`
	Synced   uint64       `json:"synced,omitempty"` // batches up to this one were durable when it was written
	Torn     bool         `json:"torn,omitempty"`   // it was being written when the node went down: a start drops it
	Damage   string       `json:"damage,omitempty"` // what does not check
	Sections []LogSection `json:"sections"`
}

// LogSection is one statement of a frame about a group.
type LogSection struct {
	Offset uint64 `json:"offset"` // in the file
	Bytes  uint64 `json:"bytes"`
	// Kind is write, move, configuration, compaction, removal, state, segments, owner or unreadable.
	Kind  string   `json:"kind"`
	ID    uint64   `json:"id,omitempty"`    // of the group
	Group string   `json:"group,omitempty"` // its name, if that is known here
	Flags []string `json:"flags,omitempty"` // new: the group was made by it; snapshot: it replaced the log; damaged: it was found damaged before
	// At is the snapshot's position, the log's start (compaction, state), or the configuration's index.
	At       *LogPosition  `json:"at,omitempty"`
	Hard     *LogHardState `json:"hard_state,omitempty"`
	First    *LogPosition  `json:"first,omitempty"` // of the entries; a term of 0 is not said here
	Last     *LogPosition  `json:"last,omitempty"`
	Segments []uint64      `json:"segments,omitempty"` // where a state's entries are, or which segments are full
	Owner    string        `json:"owner,omitempty"`    // node and cluster whose log it is
	Damage   string        `json:"damage,omitempty"`
}

// LogPosition is a place in a log.
type LogPosition struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
}

// LogHardState is what a replica has promised.
type LogHardState struct {
	Term   uint64 `json:"term"`
	Vote   uint64 `json:"vote"` // replica id; 0: none in this term
	Commit uint64 `json:"commit"`
}

// LogVerified is how a start of a stopped node would judge its log.
type LogVerified struct {
	Data     string       `json:"data"`
	Sound    bool         `json:"sound"`
	Segments int          `json:"segments"`
	Bytes    uint64       `json:"bytes"` // read
	Groups   []LogGroup   `json:"groups"`
	Problems []LogProblem `json:"problems"`
	Unnamed  string       `json:"unnamed,omitempty"` // why groups have no names here
}

// LogGroup is a group's log.
type LogGroup struct {
	ID      uint64       `json:"id"`
	Group   string       `json:"group,omitempty"` // its name, if that is known here
	First   uint64       `json:"first"`           // above Last.Index: the log holds no entries
	Last    LogPosition  `json:"last"`
	Hard    LogHardState `json:"hard_state"`
	Voters  int          `json:"voters"`
	Bytes   uint64       `json:"bytes"`
	Damaged string       `json:"damaged,omitempty"` // why it is not used
	Next    string       `json:"next,omitempty"`    // what the next start does about it
}

// LogProblem is something that the files should not hold.
type LogProblem struct {
	Kind   string   `json:"kind"` // damage: acknowledged data is concerned; note: it is not
	File   string   `json:"file,omitempty"`
	Offset uint64   `json:"offset"`
	Batch  uint64   `json:"batch,omitempty"`
	Groups []string `json:"groups"` // whose log it concerns: names, or ids
	What   string   `json:"what"`
	Next   string   `json:"next"` // what the next start does about it
}
