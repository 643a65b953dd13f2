package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// The node's side of the cluster level (ARCHITECTURE.md, Levels). What the node acts under is node.level, which follows
// the control group's state: first the data directory is marked, durably, so that a program which does not know the level
// is refused at the next start; then the level is in force, for what is proposed, sent and written here.

// knows is what this program can work at.
func knows() control.Levels { return control.Levels{Min: api.MinLevel, Max: api.Level} }

// followLevel adopts the level that the control group has, or ends the node if its program does not know it.
func (n *node) followLevel(cluster uint64) error {
	recorded := n.level.Load()
	level, unfit := knows().Act(n.id.Name(), recorded, cluster)
	if level > recorded {
		if err := n.markLevel(level); err != nil {
			return fmt.Errorf("mark the data directory with level %d: %w", level, err)
		}
	}
	if unfit != nil {
		n.leaveFor(unfit)
		return nil
	}
	if level > recorded {
		n.level.Store(level)
		n.log.Info("cluster level", "level", level, "before", recorded)
	}
	return nil
}

// markLevel has the data directory say that it is used at level.
func (n *node) markLevel(level uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if level <= n.marked {
		return nil
	}
	if err := access.Mark(n.data.path, n.id, int(level)); err != nil {
		return err
	}
	n.marked = level
	return nil
}

// departure is why a node ends though nothing of it failed.
type departure struct {
	why *api.Error
	// expelled: the cluster does not want the node as it is. Else it ends for now, and hands over what it leads.
	expelled bool
}

// leaveFor has the node end in good order. Unlike expel it is not for good: a newer program goes on.
func (n *node) leaveFor(why *api.Error) { n.depart(departure{why: why}) }

// depart has the node end; the first reason counts.
func (n *node) depart(d departure) {
	select {
	case n.quit <- d:
	default:
	}
}

// reached is the highest level that the cluster is known to have reached. Before the control group's state is there, it
// is what the data directory says.
func (n *node) reached() uint64 { return max(n.level.Load(), n.ctl.state().Level()) }

// newerLevel says, for users, that err is about a level which this program does not know; nil: it is about something
// else. What err says is no proof that the cluster is at that level, and a mark is for good: the data directory is marked
// only with what the control group has. Without a mark the next start comes to the same end, only later.
func (n *node) newerLevel(err error) *api.Error {
	var newer *replica.NewerLevelError
	if !errors.As(err, &newer) || newer.Level <= knows().Max {
		return nil
	}
	if level := n.ctl.state().Level(); level > knows().Max {
		if err := n.markLevel(level); err != nil {
			n.log.Warn("the data directory is not marked with the cluster's level", "level", level, "err", err)
		}
	}
	return control.Unfit("serve", n.id.Name(), knows(), newer.Level)
}

// Level of the cluster, and what each node can work at.
func (n *node) Level(context.Context) (api.ClusterLevel, error) {
	st := n.ctl.state()
	if st.Cluster.ID == "" {
		return api.ClusterLevel{}, errStarting
	}
	out := api.ClusterLevel{Level: st.Level(), Nodes: []api.NodeLevel{}}
	out.Reach, _ = st.Reach()
	for _, p := range st.Nodes {
		if !p.Removed {
			out.Nodes = append(out.Nodes, api.NodeLevel{Node: p.Name, Version: p.Version, Levels: shownLevels(p.Levels)})
		}
	}
	return out, nil
}

func shownLevels(l control.Levels) api.Levels {
	l = l.Known()
	return api.Levels{Min: l.Min, Max: l.Max}
}

// LevelRaise raises the cluster level, by default as far as every node can follow.
func (n *node) LevelRaise(ctx context.Context, req api.LevelRaise) (out api.LevelRaised, err error) {
	st := n.ctl.state()
	if st.Cluster.ID == "" {
		return out, errStarting
	}
	out.From, out.To = st.Level(), req.To
	if out.To == 0 {
		reach, _ := st.Reach()
		out.To = max(reach, out.From)
	}
	_, err = n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Raise: &control.Raise{To: out.To}})
	return out, err
}

// levelWarnings say that an upgrade is under way, or done but for the level.
func levelWarnings(st *control.State) []api.Warning {
	level := st.Level()
	reach, behind := st.Reach()
	top := reach
	for _, p := range st.Nodes {
		if !p.Removed {
			top = max(top, shownLevels(p.Levels).Max)
		}
	}
	switch {
	case reach > level:
		return []api.Warning{{Name: "level_not_raised", Subject: "cluster",
			Text: fmt.Sprintf("every node knows level %d, the cluster is at %d: any node can still go back to the version before", reach, level),
			Hint: "when the new version has proved itself: lockstep level raise"}}
	case top > level:
		return []api.Warning{{Name: "upgrade_under_way", Subject: "cluster",
			Text: fmt.Sprintf("some nodes know level %d, %s only level %d", top, list(behind), reach),
			Hint: "upgrade the others one by one; lockstep level show lists who knows what"}}
	}
	return nil
}

// list names a few.
func list(names []string) string {
	const few = 3
	switch {
	case len(names) == 0:
		return "nobody"
	case len(names) == 1:
		return names[0]
	case len(names) > few:
		return fmt.Sprintf("%s and %d more", names[0], len(names)-1)
	}
	out := names[0]
	for _, n := range names[1 : len(names)-1] {
		out += ", " + n
	}
	return out + " and " + names[len(names)-1]
}
