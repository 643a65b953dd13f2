package api

import "encoding/json"

// None is the request of a route that takes none.
type None struct{}

// TokenCreate asks for a token with which another server may join.
type TokenCreate struct {
	TTL string `json:"ttl,omitempty"` // as in time.ParseDuration; default 1h, at most 720h
}

// GroupTransfer asks that Node become the group's leader.
type GroupTransfer struct {
	Node string `json:"node"`
}

// GroupSet changes settings of a group; what is empty stays as it is.
type GroupSet struct {
	Topology    string `json:"topology,omitempty"`      // star, chain, tree:K, auto
	Ack         string `json:"ack,omitempty"`           // local, quorum, all
	InSyncAfter string `json:"in_sync_after,omitempty"` // as in time.ParseDuration; 1s to 1h
	CheckEvery  string `json:"check_every,omitempty"`   // same; 1s to 24h
	RepairAfter string `json:"repair_after,omitempty"`  // same; at least 10s, or off; inherit: as the cluster's
}

// ClusterSet changes what holds for all groups that do not say otherwise; what is empty stays as it is.
type ClusterSet struct {
	RepairAfter string `json:"repair_after,omitempty"` // as in GroupSet, but for inherit
}

// GroupCheckRequest asks that a group's replicas compare their states now.
type GroupCheckRequest struct {
	Deep bool `json:"deep,omitempty"` // from all records, whatever was remembered of them
}

// GroupProbeRequest asks for a write that changes nothing.
type GroupProbeRequest struct {
	Ack string `json:"ack,omitempty"` // local, quorum, all; default: the group's
}

// DirBind adds a node to a files group, or moves where it keeps it.
type DirBind struct {
	Node string `json:"node"`
	Path string `json:"path"` // absolute directory on that node
}

// DirList asks for one page of the entries directly below Path, in bytewise order of their names. It travels
// as a query.
type DirList struct {
	Path  string // relative to the group's root; "" is the root itself
	After string // name that the page starts after; "" starts at the first
	Limit int    // 1 … DirListMax; 0 is DirListMax
}

// DirListMax bounds a page of DirList.
const DirListMax = 1000

// DirEntries is one page.
type DirEntries struct {
	Entries []DirEntry `json:"entries"`
	More    bool       `json:"more"` // ask again with After = the last entry's name
}

// Values of DirWaitFor.Mode.
const (
	WaitAll    = "all"    // every node of the group
	WaitQuorum = "quorum" // a majority of its voters
	WaitNode   = "node"   // DirWaitFor.Node
)

// DirWaitFor asks to be answered when everything that was on disk when it was asked, on any node that is up,
// is on disk where Mode says.
type DirWaitFor struct {
	Mode    string `json:"mode,omitempty"` // default all
	Node    string `json:"node,omitempty"`
	Timeout string `json:"timeout,omitempty"` // as in time.ParseDuration; default: none
}

// DirVerifyRequest asks that every node reads and hashes what it holds and compares it with the manifest.
type DirVerifyRequest struct {
	Repair bool `json:"repair,omitempty"` // fetch damaged content again from a node that has it
}

// Done answers a request that changes something and has nothing to report.
type Done struct {
	Op      string `json:"op"`
	Subject string `json:"subject"`
	Text    string `json:"text"` // one sentence
}

// Progress of a long operation. Total 0: not known yet.
type Progress struct {
	What  string `json:"what"`           // "waiting", "verifying" …
	Node  string `json:"node,omitempty"` // on which node; empty: as a whole
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
	Unit  string `json:"unit"` // files, bytes, nodes, entries
}

// StreamLine is one line of an answer in the media type MediaStream: any number of Progress, then exactly
// one Result or Error.
type StreamLine struct {
	Progress *Progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// Check is one named condition of readiness.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text,omitempty"` // why not
	Hint string `json:"hint,omitempty"` // what to do about it; empty: nothing, it passes by itself as a rule
}

// Ready is the answer of GET /readyz: status 200 if every check holds, else 503.
type Ready struct {
	Ready  bool    `json:"ready"`
	Checks []Check `json:"checks"`
}
