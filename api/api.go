// Package api holds the public words of Lockstep: what its HTTP API and its CLI's JSON output say, the table
// of error codes and the table of routes. It imports only the standard library, starts no goroutine and does
// no I/O. Fields are only ever added.
//
// File names may hold any byte, JSON strings may not: every path in a value of this package is in the form
// that EscapePath gives it.
package api

import "time"

// MinLevel and Level are the cluster levels that this source knows: it works in a cluster that is at one of them.
const (
	MinLevel = 1
	Level    = 1
)

// Levels is a range of cluster levels.
type Levels struct {
	Min uint64 `json:"min"`
	Max uint64 `json:"max"`
}

type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	// Levels that this program can work at: Level is the highest, MinLevel the lowest.
	Level    int `json:"level"`
	MinLevel int `json:"min_level"`
	// Cluster is the level that the cluster of the node is at; only in what a node answers. 0: not known.
	Cluster int `json:"cluster_level,omitempty"`
}

type Node struct {
	Name    string `json:"name"`
	ID      string `json:"id"` // hex
	Address string `json:"address"`
	State   string `json:"state"` // up, down, joining
	Version string `json:"version"`
	Voter   bool   `json:"voter"`           // votes in the control group, by the configuration in force
	Drain   bool   `json:"drain,omitempty"` // gives up its votes and leaderships
	// Learning: it is to vote in the control group as soon as it has what that has.
	Learning bool   `json:"learning,omitempty"`
	Zone     string `json:"zone,omitempty"`
	Self     bool   `json:"self,omitempty"`
	Levels   Levels `json:"levels"` // that its program can work at, as it said when it last started
	// Full is set while the disk of its data directory has no room.
	Full *FullDisk `json:"disk_full,omitempty"`
}

// FullDisk is of a node whose data directory has no room for more: it votes and answers, but takes no writes.
type FullDisk struct {
	Path   string `json:"path"`
	Free   uint64 `json:"free_bytes"`
	Needed uint64 `json:"needed_bytes"` // free bytes from which on it goes on
	// Lacks is what is used up if it is not bytes: inodes or quota. Free and Needed say nothing then.
	Lacks string    `json:"lacks,omitempty"`
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
}

type Replica struct {
	Node       string  `json:"node"`
	Role       string  `json:"role"` // leader, follower, learner, observer
	Mode       string  `json:"mode"` // live, diff, snap, diverged, damaged, detached, probe, down
	Why        string  `json:"why"`
	Rule       string  `json:"rule"`               // R0 … R7: what decided how it last caught up
	Upstream   string  `json:"upstream"`           // node that feeds it; a voter's is the leader
	Hops       int     `json:"hops"`               // observers: feeds from a voter to it
	Feeds      int     `json:"feeds"`              // observers that it feeds
	Received   uint64  `json:"received,omitempty"` // bytes of the snapshot that is being received
	Applied    uint64  `json:"applied"`
	LagEntries uint64  `json:"lag_entries"`
	LagSeconds float64 `json:"lag_seconds"`
}

type Group struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"` // control, files
	Leader   string `json:"leader"`
	Term     uint64 `json:"term"`
	Commit   uint64 `json:"commit"`
	Ack      string `json:"ack,omitempty"`
	Topology string `json:"topology"` // how observers are fed: star, chain, tree:K, auto
	InSync   InSync `json:"in_sync"`
	Losses   uint64 `json:"losses"`         // writes that were ACCEPTED and lost, as far as members that are up know; ever
	History  string `json:"history"`        // of its log: 32 hex digits
	Fork     *Fork  `json:"fork,omitempty"` // how the history came to be, if it was recovered or restored
	// RepairAfter is how long a voter may be down before a spare takes its seat, or off; Inherited: as the cluster's.
	RepairAfter     string    `json:"repair_after"`
	RepairInherited bool      `json:"repair_inherited,omitempty"`
	Replicas        []Replica `json:"replicas"`
}

// Fork says from where a group's history goes on.
type Fork struct {
	Before string    `json:"before"` // history
	Index  uint64    `json:"index"`  // the last position that both share
	Cause  string    `json:"cause"`  // recover, restore
	Node   string    `json:"node"`   // that began it
	Time   time.Time `json:"time"`
}

// InSync is a group's recorded in-sync set: who holds everything that was answered COMMITTED_ALL.
type InSync struct {
	Version uint64    `json:"version"`
	Nodes   []string  `json:"nodes"`
	Since   time.Time `json:"since"`
	Why     string    `json:"why"`
	After   string    `json:"after"` // a member that lags or is down for longer leaves
}

// Answers to a write.
const (
	AnswerAccepted     = "ACCEPTED"              // the leader has it; a failover may lose it
	AnswerCommitted    = "COMMITTED"             // a majority has it
	AnswerCommittedAll = "COMMITTED_ALL"         // every member of the in-sync set of version Set has it
	AnswerQuorumOnly   = "COMMITTED_QUORUM_ONLY" // a majority has it, Missing did not in time
	AnswerUnknown      = "UNKNOWN"               // no answer in time
)

// GroupProbe is how a write that changes nothing was answered.
type GroupProbe struct {
	Group   string   `json:"group"`
	Ack     string   `json:"ack"`
	Answer  string   `json:"answer"`
	Term    uint64   `json:"term"`
	Index   uint64   `json:"index"`
	Token   string   `json:"token,omitempty"`       // with ACCEPTED: for `group token`
	Set     uint64   `json:"set_version,omitempty"` // with COMMITTED_ALL
	Missing []string `json:"missing"`               // with COMMITTED_QUORUM_ONLY; empty: not known
	Seconds float64  `json:"seconds"`
}

// GroupCheck is one comparison of a group's replicas. Odd is who has another state than the majority of the voters; it
// replaces it by itself. Without a majority (Agreed false) nothing is repaired.
type GroupCheck struct {
	Group   string           `json:"group"`
	Index   uint64           `json:"index"` // the states are those after this entry
	Deep    bool             `json:"deep"`
	Agreed  bool             `json:"agreed"` // a majority of the voters has the same state
	Odd     []string         `json:"odd"`
	Missing []string         `json:"missing"` // did not answer
	Nodes   []GroupCheckNode `json:"nodes"`
}

type GroupCheckNode struct {
	Node   string `json:"node"`
	Digest string `json:"digest"`          // empty: none
	Error  string `json:"error,omitempty"` // why there is none
}

// Fates of an accepted write.
const (
	FateCommitted = "COMMITTED"
	FateLost      = "LOST"
	FateUnknown   = "UNKNOWN" // not decided yet, or no longer remembered: Why says which
)

// GroupToken is what became of an accepted write.
type GroupToken struct {
	Group string `json:"group"`
	Token string `json:"token"`
	Fate  string `json:"fate"`
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
	Why   string `json:"why"`
}

type Problem struct {
	Path  string    `json:"path"`
	What  string    `json:"what"` // one line: unreadable, not UTF-8 (shown escaped), skipped device, disk full …
	Hint  string    `json:"hint,omitempty"`
	Since time.Time `json:"since"`
}

type DirNode struct {
	Node        string    `json:"node"`
	Role        string    `json:"role"`
	Path        string    `json:"path"`
	Mode        string    `json:"mode"` // live, scan, diff, snap, stopped, down
	Why         string    `json:"why,omitempty"`
	Watcher     string    `json:"watcher"` // fanotify, inotify (why), poll (why)
	Applied     uint64    `json:"applied"`
	Placed      uint64    `json:"placed"` // everything up to this index is on disk
	Digest      string    `json:"digest"`
	BehindFiles uint64    `json:"behind_files"`
	BehindBytes uint64    `json:"behind_bytes"`
	LagSeconds  float64   `json:"lag_seconds"`
	Pending     uint64    `json:"pending"` // local changes seen but not yet committed
	Conflicts   uint64    `json:"conflicts"`
	Problems    []Problem `json:"problems"`

	// LingeringBytes are of large files that were removed or replaced lately and are kept for a while, in case that they
	// turn up elsewhere.
	LingeringBytes uint64 `json:"lingering_bytes"`
}

type DirStatus struct {
	Group    string    `json:"group"`
	Position uint64    `json:"position"`
	Digest   string    `json:"digest"`
	Files    uint64    `json:"files"`
	Bytes    uint64    `json:"bytes"`
	Ack      string    `json:"ack"`
	Conflict string    `json:"conflict"`
	Topology string    `json:"topology"`
	Nodes    []DirNode `json:"nodes"`
}

// DirCreate asks for a new files group.
type DirCreate struct {
	Name     string            `json:"name"`
	Paths    map[string]string `json:"paths"`              // node name → directory
	Ack      string            `json:"ack,omitempty"`      // local, quorum (default), all
	Conflict string            `json:"conflict,omitempty"` // keep-both (default), first, newest, prefer:NODE
	Mode     string            `json:"mode,omitempty"`     // readwrite (default), readonly
	Topology string            `json:"topology,omitempty"` // star (default), chain, tree:K, auto
}

type DirEntry struct {
	Path    string    `json:"path"`
	Kind    string    `json:"kind"` // file, dir, symlink
	Size    int64     `json:"size"`
	Mode    string    `json:"mode"` // octal
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	MTime   time.Time `json:"mtime"`
	Hash    string    `json:"hash,omitempty"`
	Target  string    `json:"target,omitempty"`
	Version uint64    `json:"version"`
}

type DirWait struct {
	Group    string   `json:"group"`
	Position uint64   `json:"position"` // what was waited for
	Reached  []string `json:"reached"`
	Missing  []string `json:"missing"`
	Seconds  float64  `json:"seconds"`
	Done     bool     `json:"done"` // what was asked for is reached; false: the timeout came first
	// Why says of nodes that are missing what keeps them.
	Why map[string]string `json:"why,omitempty"`
}

type DirVerify struct {
	Group string          `json:"group"`
	Nodes []DirVerifyNode `json:"nodes"`
}

type DirVerifyNode struct {
	Node        string   `json:"node"`
	Files       uint64   `json:"files"`
	Bytes       uint64   `json:"bytes"`
	Differences []string `json:"differences"` // at most 1000 paths, each with what differs
	Damaged     []string `json:"damaged"`     // content changed while size, mtime and ctime did not
	Unreadable  []string `json:"unreadable"`  // what could not be compared, each with why
	Err         string   `json:"error,omitempty"`
}

type Conflict struct {
	Path  string    `json:"path"`
	Copy  string    `json:"copy"`
	Node  string    `json:"node"` // who wrote the copy
	Time  time.Time `json:"time"`
	Index uint64    `json:"index"`
}

type Token struct {
	Token   string    `json:"token,omitempty"` // only in the answer to create
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
	Used    int       `json:"used"`
}

type Warning struct {
	Name    string    `json:"name"` // stable identifier
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	Hint    string    `json:"hint"`
	Since   time.Time `json:"since"`
}

// Status is the answer of GET /v1/status: the node that was asked, and its view of the cluster.
type Status struct {
	Cluster  string      `json:"cluster"`
	Level    uint64      `json:"level"` // of the cluster; 0: not known yet
	Node     Node        `json:"node"`
	Ready    bool        `json:"ready"`
	Nodes    []Node      `json:"nodes"`
	Groups   []Group     `json:"groups"`
	Dirs     []DirStatus `json:"dirs"`
	Warnings []Warning   `json:"warnings"`
}
