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
	// Replace: the node of that name has lost its data; this one takes its place in every group.
	Replace bool `json:"replace"`
}

// SetAddress says where a node is to be found from now on, and what version it runs.
type SetAddress struct {
	Node    uint64 `json:"node"`
	Address string `json:"address"`
	Version string `json:"version"`
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
