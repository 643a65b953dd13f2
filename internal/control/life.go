package control

import "github.com/lockstep-sync/lockstep/api"

// Life tells the runs of a node apart. A data directory that was copied, or restored from an old image, has
// forgotten votes and acknowledgements that its node gave: it must not speak for it.
type Life struct {
	Boot uint64 `json:"boot"` // random, one a process
	// Age counts up on the node's disk: at every start, and while it runs. It is durable there before
	// anybody hears of it, so a successor is always older than what was heard.
	Age uint64 `json:"age"`
}

// Admits tells whether a node that was last known as l may now be next: the same process, or one that started from
// what l left on the disk or from something later. The zero Life is unknown and admits, and is admitted, always.
func (l Life) Admits(next Life) bool {
	return l == Life{} || next == Life{} || next.Boot == l.Boot || next.Age > l.Age
}

// Expelled is what a node is told that was removed.
func Expelled(name string) *api.Error {
	return &api.Error{Code: api.CodeDenied, Op: "serve", Subject: name, Why: "this node was removed from the cluster",
		Hint: "its files stay where they are; to take part again, move the data directory away and join with --join TOKEN"}
}

// Outlived is what a node is told whose data directory is older than what the cluster has seen of it.
func Outlived(name string) *api.Error {
	return &api.Error{Code: api.CodeDamage, Op: "serve", Subject: name,
		Why:  "the cluster has seen a later state of this node: its data directory is a copy, or was restored from an old image, and has forgotten what it promised",
		Hint: "if another process runs with this identity, that one is the node now; to take part from here, move the data directory away, stop the other, and join again with --join TOKEN --replace"}
}
