// Package control is the machine of the control group: the nodes of the cluster, its groups and their members,
// join tokens, and an audit trail. Every node holds a copy.
//
// It decides who belongs to what; it moves nothing itself. The server follows its State and acts on it. The
// package has no clock, goroutine, socket or disk of its own; what depends on time uses the time of the command.
package control

import (
	"maps"
	"slices"
	"time"
)

// ControlGroup is the id of the one group that describes the cluster.
const ControlGroup = 1

// MaxVoters is how many members of a group vote; further ones observe.
const MaxVoters = 5

// Kinds of groups.
const (
	KindControl = "control"
	KindFiles   = "files"
)

// Roles of members.
const (
	RoleVoter    = "voter"
	RoleObserver = "observer"
)

// Cluster is what was decided once, when the first node started.
type Cluster struct {
	ID      string    `json:"id"` // 32 hex digits
	Created time.Time `json:"created"`
	CACert  []byte    `json:"ca_cert"`         // PEM
	CAKey   []byte    `json:"ca_key"`          // PEM
	Level   uint64    `json:"level,omitempty"` // see State.Level
	// RepairAfter is Group.RepairAfter of the groups that have none of their own.
	RepairAfter time.Duration `json:"repair_after,omitempty"`
}

// RepairAfter is how long a voter of the group may be down before a spare takes its seat; 0: for ever.
func (s *State) RepairAfter(g *Group) time.Duration {
	if g.RepairAfter != nil {
		return *g.RepairAfter
	}
	return s.Cluster.RepairAfter
}

// Node is a server of the cluster.
type Node struct {
	ID         uint64    `json:"id"` // never reused
	Name       string    `json:"name"`
	Address    string    `json:"address"` // host:port for other nodes
	Version    string    `json:"version,omitempty"`
	Joined     time.Time `json:"joined"`
	Zone       string    `json:"zone,omitempty"`  // what fails together: a rack, a room; empty: unknown
	Drain      bool      `json:"drain,omitempty"` // it is to hold no seat and no leadership
	Life       Life      `json:"life,omitzero"`   // of its latest start
	Levels     Levels    `json:"levels,omitzero"` // that its program can work at, as it said when it last started
	Removed    bool      `json:"removed,omitempty"`
	ReplacedBy uint64    `json:"replaced_by,omitempty"`
}

// Member is one node's replica of a group.
type Member struct {
	Replica uint64 `json:"replica"` // never reused within the group
	Node    uint64 `json:"node"`
	Role    string `json:"role"`
	Path    string `json:"path,omitempty"` // files groups: the directory on that node
	Seat    int    `json:"seat,omitempty"` // observers: the place in the topology, see Feeds
	// Binding is the replica id under which the directory was bound. It outlives changes of role, and with it
	// what the node knows of the directory.
	Binding uint64 `json:"binding,omitempty"`
	// Pinned: somebody chose this role; placement leaves it alone, a drain and a repair do not.
	Pinned bool `json:"pinned,omitempty"`
	// Spare: an observer that takes the seat of a voter that is down for longer than the group's RepairAfter, or the cluster's.
	Spare bool `json:"spare,omitempty"`
}

// Former is a replica that had a seat and has it no more: the group's configuration may hold it for a while yet.
type Former struct {
	Replica uint64 `json:"replica"`
	Node    uint64 `json:"node"`
}

// maxFormer bounds Group.Former; a configuration lags behind by a few changes at most.
const maxFormer = 16

// Group is one replicated data set.
type Group struct {
	ID          uint64        `json:"id"`
	Name        string        `json:"name"`
	Kind        string        `json:"kind"`
	Ack         string        `json:"ack"`                // local, quorum, all
	Conflict    string        `json:"conflict,omitempty"` // keep-both, first, newest, prefer:NODE
	Mode        string        `json:"mode,omitempty"`     // readwrite, readonly
	Topology    string        `json:"topology,omitempty"`
	History     [16]byte      `json:"history"`
	Origin      [16]byte      `json:"origin,omitzero"` // the first history, if it was forked
	Fork        *Fork         `json:"fork,omitempty"`  // the last one
	Past        [][16]byte    `json:"past,omitempty"`  // histories that forks left behind, oldest first, maxPast at most
	Created     time.Time     `json:"created"`
	InSync      InSync        `json:"in_sync,omitzero"`
	InSyncAfter time.Duration `json:"in_sync_after,omitempty"` // 0: DefaultInSyncAfter
	CheckEvery  time.Duration `json:"check_every,omitempty"`   // 0: DefaultCheckEvery
	Initial     []uint64      `json:"initial"`                 // replicas that started the group
	Members     []Member      `json:"members"`                 // in the order in which they came
	NextReplica uint64        `json:"next_replica"`
	Former      []Former      `json:"former,omitempty"` // oldest first
	Deleted     bool          `json:"deleted,omitempty"`
	// RepairAfter is how long a voter may be down before a spare takes its seat; 0: for ever. nil: see Cluster.
	RepairAfter *time.Duration `json:"repair_after,omitempty"`
	// LeaderChosen is when somebody last chose the leader; for a while nothing else moves it.
	LeaderChosen time.Time `json:"leader_chosen,omitzero"`
}

// Token lets servers join until it expires or is revoked.
type Token struct {
	ID         string    `json:"id"`          // hex
	SecretHash string    `json:"secret_hash"` // hex
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`
	Revoked    bool      `json:"revoked,omitempty"`
	Used       int       `json:"used"`
}

// Audit is one change of membership, settings or access.
type Audit struct {
	Seq   uint64    `json:"seq"`
	Index uint64    `json:"index"`
	Time  time.Time `json:"time"`
	By    string    `json:"by"`
	What  string    `json:"what"`
}

// State is everything, at one index. It is immutable once published.
type State struct {
	Index   uint64
	Cluster Cluster
	Nodes   []Node  // by id, removed ones included
	Groups  []Group // by id, deleted ones included
	Tokens  []Token // by id
	Audit   []Audit // oldest first
}

// Node looks a node up by id, removed ones included.
func (s *State) Node(id uint64) (*Node, bool) {
	i, ok := slices.BinarySearchFunc(s.Nodes, id, func(n Node, id uint64) int { return compare(n.ID, id) })
	if !ok {
		return nil, false
	}
	return &s.Nodes[i], true
}

// NodeNamed looks a live node up by name.
func (s *State) NodeNamed(name string) (*Node, bool) {
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Name == name && !n.Removed {
			return n, true
		}
	}
	return nil, false
}

// Group looks a group up by id, deleted ones included.
func (s *State) Group(id uint64) (*Group, bool) {
	i, ok := slices.BinarySearchFunc(s.Groups, id, func(g Group, id uint64) int { return compare(g.ID, id) })
	if !ok {
		return nil, false
	}
	return &s.Groups[i], true
}

// GroupNamed looks a group that exists up by name.
func (s *State) GroupNamed(name string) (*Group, bool) {
	for i := range s.Groups {
		if g := &s.Groups[i]; g.Name == name && !g.Deleted {
			return g, true
		}
	}
	return nil, false
}

// zoneOf is the zone of a node; empty: none.
func (s *State) zoneOf(node uint64) string {
	if n, ok := s.Node(node); ok {
		return n.Zone
	}
	return ""
}

// Token looks a token up.
func (s *State) Token(id string) (*Token, bool) {
	for i := range s.Tokens {
		if s.Tokens[i].ID == id {
			return &s.Tokens[i], true
		}
	}
	return nil, false
}

// Member is the node's member of the group.
func (g *Group) Member(node uint64) (Member, bool) {
	for _, m := range g.Members {
		if m.Node == node {
			return m, true
		}
	}
	return Member{}, false
}

// Voters are the members that vote, in the order in which they came.
func (g *Group) Voters() (voters []Member) {
	for _, m := range g.Members {
		if m.Role == RoleVoter {
			voters = append(voters, m)
		}
	}
	return voters
}

// NodeOf finds the node of a replica, one that lost its seat lately included.
func (g *Group) NodeOf(replica uint64) (uint64, bool) {
	for _, m := range g.Members {
		if m.Replica == replica {
			return m.Node, true
		}
	}
	for _, f := range g.Former {
		if f.Replica == replica {
			return f.Node, true
		}
	}
	return 0, false
}

// Nodes maps the group's replicas to their nodes, those that lost their seats lately included.
func (g *Group) Nodes() map[uint64]uint64 {
	nodes := make(map[uint64]uint64, len(g.Members)+len(g.Former))
	for _, f := range g.Former {
		nodes[f.Replica] = f.Node
	}
	for _, m := range g.Members {
		nodes[m.Replica] = m.Node
	}
	return nodes
}

// Holders are the nodes that have a replica or had one lately, in ascending order. The leader is on one of them: who
// leads may have lost its seat and wait for the one that takes it.
func (g *Group) Holders() []uint64 {
	return slices.Compact(slices.Sorted(maps.Values(g.Nodes())))
}

// roleOfNext is the role of the next member to come.
func (g *Group) roleOfNext() string {
	if len(g.Voters()) < MaxVoters {
		return RoleVoter
	}
	return RoleObserver
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
