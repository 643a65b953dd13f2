package api

// GroupRecover asks that a group which has lost its majority for good goes on with what survives.
type GroupRecover struct {
	Confirm string `json:"confirm"`           // the group's name: what others had beyond the survivors is lost
	DryRun  bool   `json:"dry_run,omitempty"` // only say what would happen
	// From is the node to begin with: one whose history the control group does not know, or any if the states of all voters
	// that answer are in quarantine; its state counts from then on. Empty: the survivor that has most.
	From string `json:"from,omitempty"`
}

// GroupRecovered is what a recovery did, or would do.
type GroupRecovered struct {
	Group     string   `json:"group"`
	Node      string   `json:"node"`              // whose copy goes on
	History   string   `json:"history,omitempty"` // the new one; empty in a dry run
	Before    string   `json:"before"`
	Fork      uint64   `json:"fork"` // the last position known to be the same for everybody
	Last      uint64   `json:"last"` // the last position that is kept
	Survivors []string `json:"survivors"`
	Lost      []string `json:"lost"` // members that do not answer
	DryRun    bool     `json:"dry_run"`
	// Doubtful: the state of Node is in quarantine: a majority had another one. It counts if the node was named; else it is
	// replaced by that of the next voter.
	Doubtful bool `json:"doubtful,omitempty"`
}

// OfflineRecovered is what the recovery of the control group on a stopped node did.
type OfflineRecovered struct {
	Node    string   `json:"node"`
	Cluster string   `json:"cluster"`
	History string   `json:"history"`
	Before  string   `json:"before"`
	Fork    uint64   `json:"fork"`
	Last    uint64   `json:"last"`
	Others  []string `json:"others"` // members of the control group that come back under the new history
	// Doubtful: the state of Node was in quarantine, and counts from now on.
	Doubtful bool `json:"doubtful,omitempty"`
	// StateOnly: the log of Node was damaged and was given up; the group goes on from its state.
	StateOnly bool `json:"state_only,omitempty"`
}
