package control

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Command is one change; exactly one of its pointers is set.
type Command struct {
	By string `json:"by"` // who asked, for the audit trail

	Init        *Init        `json:"init,omitempty"`
	AddToken    *Token       `json:"add_token,omitempty"`
	RevokeToken *RevokeToken `json:"revoke_token,omitempty"`
	Join        *Join        `json:"join,omitempty"`
	SetAddress  *SetAddress  `json:"set_address,omitempty"`
	CreateGroup *CreateGroup `json:"create_group,omitempty"`
	Bind        *Bind        `json:"bind,omitempty"`
	Unbind      *Unbind      `json:"unbind,omitempty"`
	SetGroup    *SetGroup    `json:"set_group,omitempty"`
	SetInSync   *SetInSync   `json:"set_in_sync,omitempty"`
	ForkGroup   *ForkGroup   `json:"fork_group,omitempty"`
	RefuseFork  *RefuseFork  `json:"refuse_fork,omitempty"`
	Members     *Members     `json:"members,omitempty"`
	Seats       *Seats       `json:"seats,omitempty"`
	Drain       *Drain       `json:"drain,omitempty"`
	RemoveNode  *RemoveNode  `json:"remove_node,omitempty"`
	DeleteGroup *DeleteGroup `json:"delete_group,omitempty"`
	ChoseLeader *ChoseLeader `json:"chose_leader,omitempty"`
	Renew       *Renew       `json:"renew,omitempty"`
	SetCluster  *SetCluster  `json:"set_cluster,omitempty"`
	Raise       *Raise       `json:"raise,omitempty"`
}

// Renew gives a voter whose log is damaged another replica id: what the old one voted and acknowledged is not known any
// more. Its binding stays. If the node has another replica by now, nothing changes.
type Renew struct {
	Group   uint64 `json:"group"`
	Node    uint64 `json:"node"`
	Replica uint64 `json:"replica"`
}

// Init describes the cluster and its first node, which has id 1. A second one changes nothing.
type Init struct {
	Cluster Cluster  `json:"cluster"`
	Node    Node     `json:"node"`
	History [16]byte `json:"history"`
}

// RevokeToken ends a token at once.
type RevokeToken struct {
	ID string `json:"id"`
}

// Join adds a node. The proposer has checked the token's secret; expiry is checked against the command's time.
type Join struct {
	Token   string `json:"token"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Version string `json:"version"`
	Zone    string `json:"zone,omitempty"`
	Levels  Levels `json:"levels,omitzero"` // that its program can work at
	// Replace: the node of that name has lost its data; this one takes its place in every group.
	Replace bool `json:"replace"`
}

// SetAddress is how a node that started introduces itself: where it is to be found from now on, what version it
// runs, at which levels that can work, and its life, by which a copy or an old image of its data directory is told from its successor.
type SetAddress struct {
	Node    uint64 `json:"node"`
	Address string `json:"address"`
	Version string `json:"version"`
	Zone    string `json:"zone,omitempty"`
	Levels  Levels `json:"levels,omitzero"`
	Life    Life   `json:"life,omitzero"`
}

// CreateGroup makes a files group over the given directories (node name → path).
type CreateGroup struct {
	Name     string            `json:"name"`
	Paths    map[string]string `json:"paths"`
	Ack      string            `json:"ack"`
	Conflict string            `json:"conflict"`
	Mode     string            `json:"mode"`
	Topology string            `json:"topology"`
	History  [16]byte          `json:"history"`
	// Restore: the group begins with what a backup held.
	Restore *ForkGroup `json:"restore,omitempty"`
}

// Bind adds a node with its directory to a files group.
type Bind struct {
	Group string `json:"group"`
	Node  string `json:"node"`
	Path  string `json:"path"`
}

// Unbind takes a node out of a files group; its files stay where they are.
type Unbind struct {
	Group string `json:"group"`
	Node  string `json:"node"`
}

// SetGroup changes settings of a group, the control group's too; what is empty stays as it is.
type SetGroup struct {
	Group    string `json:"group"`
	Topology string `json:"topology,omitempty"` // how observers are fed
	Ack      string `json:"ack,omitempty"`
	// InSyncAfter is how long a member may lag or be down before it leaves the in-sync set.
	InSyncAfter time.Duration `json:"in_sync_after,omitempty"`
	// CheckEvery is how often the replicas compare their states.
	CheckEvery time.Duration `json:"check_every,omitempty"`
	// RepairAfter is how long a voter may be down before a spare takes its seat; 0: for ever. nil: it stays as it is.
	RepairAfter *time.Duration `json:"repair_after,omitempty"`
	// InheritRepair has the cluster's hold from now on.
	InheritRepair bool `json:"inherit_repair,omitempty"`
}

// SetCluster changes what holds for all groups that do not say otherwise.
type SetCluster struct {
	RepairAfter time.Duration `json:"repair_after"` // as Group.RepairAfter
}

// Operations of Members.
const (
	OpAdd     = "add"
	OpRemove  = "remove"
	OpPromote = "promote"
	OpDemote  = "demote"
	OpReplace = "replace"
)

// RoleSpare is what may be asked for in Members.Role: an observer that is a spare.
const RoleSpare = "spare"

// Members changes one membership of a group, because somebody said so.
type Members struct {
	Group string `json:"group"`
	Op    string `json:"op"`
	Node  string `json:"node"`
	With  string `json:"with,omitempty"` // replace: the node that comes instead
	Path  string `json:"path,omitempty"` // add, replace: its directory
	Role  string `json:"role,omitempty"` // add: voter, observer, spare; empty: as the group needs
}

// Seats gives the seat of node Out to node In, because policy said so; one of them may be 0. They are exchanged as a
// whole, a spare's duty included. A proposer that looked at an older state is refused.
type Seats struct {
	Group uint64 `json:"group"`
	In    uint64 `json:"in,omitempty"`
	Out   uint64 `json:"out,omitempty"`
	Why   string `json:"why"`
}

// Drain has a node give up its seats and leaderships, or take part again.
type Drain struct {
	Node string `json:"node"`
	Off  bool   `json:"off,omitempty"`
}

// RemoveNode takes a node out of the cluster and of every group. It must be draining and hold no seat.
type RemoveNode struct {
	Node string `json:"node"`
}

// DeleteGroup ends a files group; the files stay.
type DeleteGroup struct {
	Group string `json:"group"`
}

// ChoseLeader notes that somebody chose who leads a group.
type ChoseLeader struct {
	Group string `json:"group"`
	Node  string `json:"node"`
}

// Result is what the proposer is told.
type Result struct {
	Error *api.Error `json:"error,omitempty"`
	Node  uint64     `json:"node,omitempty"`  // Join: the new node
	Group uint64     `json:"group,omitempty"` // CreateGroup
}

// Encode is the payload of a command.
func (c *Command) Encode() ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("control: encode command: %w", err)
	}
	return b, nil
}

func decodeCommand(payload []byte) (*Command, error) {
	c := &Command{}
	if err := json.Unmarshal(payload, c); err != nil {
		return nil, fmt.Errorf("control: decode command: %w", err)
	}
	return c, nil
}

// DecodeResult reads what Machine.Apply returned.
func DecodeResult(b []byte) (Result, error) {
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("control: decode result: %w", err)
	}
	return r, nil
}

func encodeResult(r Result) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("control: encode result: %w", err)
	}
	return b, nil
}
