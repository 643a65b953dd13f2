package control

import (
	"fmt"

	"github.com/lockstep-sync/lockstep/api"
)

// FirstLevel is the lowest cluster level.
const FirstLevel = 1

// The cluster level says what every node of the cluster understands: commands, records, what goes over the wire and
// what is kept on disks. The control group holds it (Cluster.Level) beside the range that each node's program can work
// at (Node.Levels). Invariants, which hold because all three commands go through one log:
//
//	V1 The level is in the range of every node that was not removed: Raise is refused while one cannot follow, Join and
//	   SetAddress of one that cannot are refused as well.
//	V2 It never falls.
//	V3 A node acts under a level only after the control group has recorded it (Levels.Act), and stamps no entry with
//	   a higher one. So whatever a log holds, every node that was told of when the level was raised can execute.

// Levels is the range of cluster levels that a program can work at. Zero is that of a program which does not say: the
// first alone.
type Levels struct {
	Min uint64 `json:"min,omitempty"`
	Max uint64 `json:"max,omitempty"`
}

// Known is l, or what zero stands for.
func (l Levels) Known() Levels { return Levels{max(l.Min, FirstLevel), max(l.Max, FirstLevel)} }

// Has says whether level is in the range.
func (l Levels) Has(level uint64) bool {
	k := l.Known()
	return k.Min <= level && level <= k.Max
}

func (l Levels) String() string {
	k := l.Known()
	if k.Min == k.Max {
		return fmt.Sprintf("level %d", k.Min)
	}
	return fmt.Sprintf("levels %d to %d", k.Min, k.Max)
}

// Act is the level that a node acts under: recorded is the one that its data directory was last used at (0: none),
// cluster the one that the control group has, as far as the node knows (0: it does not). The node is called name. An
// error says that its program cannot go on here; the level is then still what the directory is to be marked with.
func (l Levels) Act(name string, recorded, cluster uint64) (uint64, *api.Error) {
	level := max(recorded, cluster, FirstLevel)
	if !l.Has(level) {
		return level, Unfit("serve", name, l, level)
	}
	return level, nil
}

// Unfit is what a node is told whose program cannot work at the cluster's level. Its data is not touched.
func Unfit(op, name string, l Levels, level uint64) *api.Error {
	e := &api.Error{Code: api.CodeConflict, Op: op, Subject: name,
		Why:  fmt.Sprintf("the cluster is at level %d, this program knows %s", level, l),
		Hint: fmt.Sprintf("start a version of lockstep that knows level %d: lockstep version tells; nothing was changed", level)}
	if level < l.Known().Min {
		e.Hint = fmt.Sprintf("start the version that ran here before, or another that knows level %d, and raise the cluster to level %d from there: lockstep level raise",
			level, l.Known().Min)
	}
	return e
}

// Raise lifts the cluster level to To, for good.
type Raise struct {
	To uint64 `json:"to"`
}

// Level of the cluster.
func (s *State) Level() uint64 { return max(s.Cluster.Level, FirstLevel) }

// Reach is the highest level that all nodes can follow to, and the nodes which cannot follow further, by name.
func (s *State) Reach() (level uint64, behind []string) {
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Removed {
			continue
		}
		switch top := n.Levels.Known().Max; {
		case len(behind) == 0 || top < level:
			level, behind = top, []string{n.Name}
		case top == level:
			behind = append(behind, n.Name)
		}
	}
	return max(level, FirstLevel), behind
}

func (x *execution) raise(c *Raise) (Result, error) {
	const op = "level raise"
	from := x.s.Level()
	subject := fmt.Sprintf("to %d", c.To)
	switch {
	case c.To == from:
		return Result{}, nil
	case c.To < from:
		return refuse(api.CodeConflict, op, subject, fmt.Sprintf("the cluster is at level %d, and a level is never lowered", from),
			"what was written since may be unknown to an older program; to go back, restore a backup into a new cluster"), nil
	}
	for i := range x.s.Nodes {
		n := &x.s.Nodes[i]
		if n.Removed || n.Levels.Has(c.To) {
			continue
		}
		return refuse(api.CodeConflict, op, subject, fmt.Sprintf("node %s runs version %s, which knows %s", n.Name, orUnknown(n.Version), n.Levels),
			"upgrade it and start it once, or, if it is gone for good: lockstep node remove "+n.Name), nil
	}
	x.s.Cluster.Level = c.To
	x.what = fmt.Sprintf("cluster level raised from %d to %d", from, c.To)
	return Result{}, x.put([]byte{tagCluster}, x.s.Cluster)
}

func orUnknown(version string) string {
	if version == "" {
		return "unknown"
	}
	return version
}
