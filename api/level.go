package api

// ClusterLevel is what every node of the cluster understands, and how far it may be raised.
type ClusterLevel struct {
	Level uint64 `json:"level"`
	// Reach is the highest level that every node can follow to.
	Reach uint64      `json:"reach"`
	Nodes []NodeLevel `json:"nodes"`
}

// NodeLevel is what a node's program can work at, as the node said when it last started.
type NodeLevel struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	Levels  Levels `json:"levels"`
}

// LevelRaise asks for a higher cluster level. It is never lowered again.
type LevelRaise struct {
	To uint64 `json:"to,omitempty"` // 0: as far as every node can follow
}

// LevelRaised says from where to where; the same twice: it was there already.
type LevelRaised struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}
