package server

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
)

// What is done about a replica whose log is found damaged while it runs, or that has ended by itself (engine.Group.Damage,
// Stopped). It comes to the same as a start that finds the damage: it stops, and steps aside (suspect.go). One that still
// runs does so only once the others can do without it: its state is whole, it knows what it votes, and who lacks what it
// cannot read gets the whole state. So a sole voter, or one of two, goes on, and warns. What has ended for another reason
// than damage stays as it is until the node is started again, is shown as stopped, and counts as down where its group's
// seats are decided upon.

// troubled is the engine's news of a replica; whoever follows the control group looks at it.
func (n *node) troubled(uint64) { n.ctl.nudge() }

// seeToDamage ends this node's replica of a group if its log was found damaged: hold then takes the way of a damaged start.
func (n *node) seeToDamage(ctx context.Context, g *control.Group) error {
	n.mu.Lock()
	h := n.holdings[g.ID]
	n.mu.Unlock()
	if h == nil || h.grp == nil || h.grp.Damage() == nil {
		return nil
	}
	if h.grp.Stopped() == nil {
		waits := n.doWithout(ctx, g, h.grp)
		h.waits.Store(&waits)
		if waits != nil {
			return nil
		}
	}
	n.log.Warn("the log was found damaged: the replica stops, and steps aside", "group", g.Name, "replica", h.replica)
	return n.pause(h)
}

// doWithout says why the others cannot do without a replica that runs here, after they were given its leadership.
func (n *node) doWithout(ctx context.Context, g *control.Group, grp *engine.Group) error {
	if len(g.Voters()) == 1 {
		return &api.Error{Code: api.CodeUnavailable, Op: "renew replica", Subject: g.Name, Why: "no other member votes",
			Hint: fmt.Sprintf("make a backup now (lockstep backup create FILE), and have two more members vote (lockstep group members %s promote NODE): "+
				"then it begins anew by itself. It would not start again with that log; if the node is restarted before, %s goes on from the state",
				g.Name, recovery(g.Name))}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*answerTime)
	defer cancel()
	grp.HandOver(ctx)
	return n.dispensable(ctx, g, grp.Replica())
}

// renewControl ends a replica of the control group whose log was found damaged, and has a peer get another id for it; false:
// it stays as it is, and this is called again.
func (n *node) renewControl(ctx context.Context, g *control.Group, grp *engine.Group) (m control.Member, ok bool, err error) {
	if running := n.groupHere(g.ID) != nil; running && grp.Stopped() == nil {
		if n.doWithout(ctx, g, grp) != nil {
			return m, false, nil
		}
	}
	// What it acknowledged after the others were asked must not count: it has stopped when they are asked again.
	if err := n.eng.StopGroup(g.ID, false); err != nil {
		return m, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*answerTime)
	defer cancel()
	m, waits := n.askRenew(ctx, grp.Replica())
	if waits != nil {
		n.suspect(g, suspicion{replica: grp.Replica(), cause: grp.Damage(), waits: waits})
		return m, false, nil
	}
	n.log.Warn("the control group's replica begins again under another id", "replica", m.Replica)
	n.clear(g.ID)
	return m, true, nil
}

// modeStopped is the mode of a member whose replica has ended by itself.
const modeStopped = "stopped"

// troubles fills in what is the matter with a replica that was started; true: it runs no more.
func (r *report) troubles(grp *engine.Group, waits error) (ended bool) {
	if s := grp.Stopped(); s != nil {
		r.Role, r.Mode, r.Rule, r.Leader, r.Why = "none", modeStopped, "", 0, "its replica has stopped by itself: "+s.Err.Error()
		return true
	}
	if err := grp.Damage(); err != nil {
		r.Damage = fmt.Sprintf("%v; it goes on with its state, which is whole, and feeds others by that", err)
		if waits != nil {
			r.Damage += "; it begins anew as soon as the others can do without it: " + waits.Error()
		}
		r.DamageNext = hintOf(waits)
	}
	return false
}

// whyItWaits is why the replica goes on though its log is damaged; nil: nobody has looked yet.
func (h *holding) whyItWaits() error {
	if w := h.waits.Load(); w != nil {
		return *w
	}
	return nil
}

// stoppedDir is the account of a directory whose replica has ended.
func (r *report) stoppedDir(node string) *api.DirNode {
	return &api.DirNode{Mode: modeStopped, Why: r.Why, Problems: []api.Problem{{What: r.Why, Hint: restartHint(node)}}}
}

func restartHint(node string) string {
	return "stop the server on " + node + " and start it again; should that not help, keep DATA, and see lockstep offline log verify there"
}

// damageWarnings are about replicas that run no more, or that run on a log that is damaged.
func damageWarnings(shown api.Group, reports []report) (list []api.Warning) {
	for i, r := range reports {
		node := shown.Replicas[i].Node
		if w, ok := stateWarning(node, &r); ok {
			list = append(list, w)
		}
		subject := shown.Name + " on " + node
		switch {
		case r.Mode == modeStopped:
			list = append(list, api.Warning{Name: "replica_stopped", Subject: subject, Text: r.Why, Hint: restartHint(node)})
		case r.Mode == modeDamaged || r.Damage != "":
			w := api.Warning{Name: "log_damaged", Subject: subject, Text: r.Why, Hint: r.DamageNext}
			if r.Damage != "" {
				w.Text = r.Damage
			}
			if w.Hint == "" {
				w.Hint = "it begins anew by itself; look for damage on that node's disk"
			}
			list = append(list, w)
		}
	}
	return list
}

// stoppedHere are the groups whose replica here has ended by itself, and for how long.
func (n *node) stoppedHere(now time.Time) map[uint64]time.Duration {
	var ended map[uint64]time.Duration
	st := n.ctl.state()
	for i := range st.Groups {
		id := st.Groups[i].ID
		if grp := n.groupHere(id); grp != nil {
			if s := grp.Stopped(); s != nil {
				if ended == nil {
					ended = map[uint64]time.Duration{}
				}
				ended[id] = now.Sub(s.Since)
			}
		}
	}
	return ended
}

// healthIn is what is said of nodes as far as a group is concerned: one whose replica of it has ended is down there.
func healthIn(group uint64, answers heard, health func(node uint64) control.Health) func(node uint64) control.Health {
	return func(node uint64) control.Health {
		h := health(node)
		if ended, is := answers[node].Stopped[group]; is && h.Up {
			h.Up, h.Down = false, max(h.Down, ended)
		}
		return h
	}
}
