package api

// GroupMember changes one membership of a group.
type GroupMember struct {
	Op   string `json:"op"`             // add, remove, promote, demote, replace
	Node string `json:"node"`           // whose membership
	With string `json:"with,omitempty"` // replace: the node that comes instead
	Path string `json:"path,omitempty"` // add, replace: its directory; default: that of the others, if they agree
	Role string `json:"role,omitempty"` // add: voter, observer, spare; default: as the group needs
}

// NodeDrain asks that a node give up its seats and leaderships.
type NodeDrain struct {
	Off bool `json:"off,omitempty"` // it is to take part again
}

// NodeRemove asks that a node leave the cluster.
type NodeRemove struct {
	Force bool `json:"force,omitempty"` // it is down and does not come back
}

// NodeChange says how a drain or a removal ended.
type NodeChange struct {
	Node  string   `json:"node"`
	State string   `json:"state"` // drained, removed, active
	Moved []string `json:"moved"` // groups in which it voted before
	// Warnings name groups that can lose no further voter now.
	Warnings []string `json:"warnings"`
}
