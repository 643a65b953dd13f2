package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// record is the in-sync set as the control group would keep it: a register that changes by compare and swap, bound
// to the highest term that has claimed it.
type record struct {
	InSync
	term uint64
}

// setChange is a command for the register on its way.
type setChange struct {
	term, version uint64
	replicas      []uint64
}

func (r *record) apply(c setChange) {
	if c.term < r.term || c.version != r.Version {
		return
	}
	r.term = c.term
	if !slices.Equal(c.replicas, r.Replicas) {
		r.Version, r.Replicas = r.Version+1, c.replicas
	}
}

// keeper drives the set while its node leads, as the server does.
type keeper struct {
	term     uint64
	proposed []setChange
	seen     int // how much of the register's history its node has
}

// inSyncWorld is a cluster with the register, its history and changes on their way.
type inSyncWorld struct {
	*cluster
	rng     *rand.Rand
	history []record
	wire    []setChange
	keepers map[uint64]*keeper
	all     []Answer // CommittedAll
	slow    bool     // the nodes' copies of the record stay behind for long
}

func newInSyncWorld(t *testing.T, seed uint64) *inSyncWorld {
	c := &cluster{t: t, nodes: map[uint64]*node{}, answers: map[uint64]Answer{}, inSync: true}
	w := &inSyncWorld{cluster: c, rng: rand.New(rand.NewPCG(seed, 1)), keepers: map[uint64]*keeper{}, slow: seed%2 == 1}
	ids := []uint64{1, 2, 3, 4, 5}
	for _, id := range ids {
		c.add(id, &raftpb.ConfState{Voters: ids})
		w.keepers[id] = &keeper{}
	}
	w.history = []record{{InSync: InSync{Version: 1, Replicas: ids}}}
	c.answered = func(_ *node, a Answer) {
		if a.Code == CommittedAll {
			w.all = append(w.all, a)
			w.check(fmt.Sprintf("at the answer to %d", a.ID))
		}
	}
	return w
}

func (w *inSyncWorld) now() *record { return &w.history[len(w.history)-1] }

// check holds the invariant against every log: all that was ever answered CommittedAll is durable on each member of
// the set that is recorded now.
func (w *inSyncWorld) check(when string) {
	w.t.Helper()
	for _, id := range w.now().Replicas {
		for _, a := range w.all {
			if term, err := w.nodes[id].log.Term(a.Position.Index); err != nil || term != a.Position.Term {
				w.t.Fatalf("%s: replica %d is in set %d but lacks %+v, answered by set %d (term there %d, %v)",
					when, id, w.now().Version, a.Position, a.Set, term, err)
			}
		}
	}
}

// keep is one step of the keeper of a node that believes it leads.
func (w *inSyncWorld) keep(id uint64) {
	k, n := w.keepers[id], w.nodes[id]
	if !w.slow || w.rng.IntN(4) == 0 { // its node's copy of the record is behind
		k.seen = min(len(w.history)-1, k.seen+w.rng.IntN(4))
	}
	st := n.Status()
	if st.Role != Leader || !st.TermBegun {
		return
	}
	if k.term != st.Term {
		k.term, k.proposed = st.Term, nil
	}
	rec := w.history[k.seen]
	if rec.term != st.Term {
		w.wire = append(w.wire, setChange{st.Term, rec.Version, rec.Replicas})
		return
	}
	k.proposed = slices.DeleteFunc(k.proposed, func(c setChange) bool { return c.version < rec.Version })
	var also []uint64
	for _, c := range k.proposed {
		also = append(also, c.replicas...)
	}
	if !n.CountInSync(st.Term, rec.InSync, also) {
		return
	}
	next := slices.Clone(rec.Replicas)
	if i := w.rng.IntN(5 * len(next)); i < len(next) && len(next) > 1 && next[i] != id {
		next = slices.Delete(next, i, i+1)
	} else if r := uint64(1 + w.rng.IntN(5)); !slices.Contains(next, r) {
		next = append(next, r)
		slices.Sort(next)
	} else {
		return
	}
	if n.CountInSync(st.Term, rec.InSync, append(also, next...)) {
		c := setChange{st.Term, rec.Version, next}
		k.proposed = append(k.proposed, c)
		w.wire = append(w.wire, c)
	}
}

// step does one random thing.
func (w *inSyncWorld) step(i int) {
	id := uint64(1 + w.rng.IntN(5))
	n := w.nodes[id]
	switch w.rng.IntN(14) {
	case 0:
		n.holdAppend = !n.holdAppend
		n.release(w.t)
	case 1:
		if w.rng.IntN(2) == 0 {
			return
		}
		lossy := w.rng.IntN(4) == 0
		away := uint64(1 + w.rng.IntN(6)) // 6: nobody
		w.cut = func(m *raftpb.Message) bool {
			return m.GetFrom() == away || m.GetTo() == away || lossy && w.rng.IntN(3) == 0
		}
	case 2:
		w.tick(1 + w.rng.IntN(12))
	case 3, 4:
		if n.Status().Role == Leader {
			w.propose(n, AckAll, uint64(1000+i))
		}
	case 5, 6, 7, 8:
		for id := range uint64(5) {
			w.keep(id + 1)
		}
	case 9, 10, 11, 12:
		if n := len(w.wire); n > 0 { // out of order, some twice, some late
			late := n
			if w.rng.IntN(4) > 0 {
				late = min(n, 3)
			}
			c := w.wire[n-1-w.rng.IntN(late)]
			next := *w.now()
			next.apply(c)
			w.history = append(w.history, next)
			w.check("when the set changed")
		}
	case 13:
		if n.Status().Role == Leader && w.rng.IntN(2) == 0 {
			n.Transfer(uint64(1 + w.rng.IntN(5)))
		}
	}
	w.run()
}

// TestInSyncSetHoldsEverythingAnswered drives leaders, losses, slow disks and changes of the set in any order.
func TestInSyncSetHoldsEverythingAnswered(t *testing.T) {
	answered, versions := 0, uint64(0)
	for seed := range uint64(400) {
		w := newInSyncWorld(t, seed)
		w.elect(1)
		for i := range 300 {
			w.step(i)
		}
		answered += len(w.all)
		versions += w.now().Version
	}
	if answered < 1000 || versions < 2000 {
		t.Errorf("the schedules prove too little: %d answers, %d versions", answered, versions)
	}
	t.Logf("%d answers of all, %d versions", answered, versions)
}

func TestAllNamesTheSetItCounted(t *testing.T) {
	c := &cluster{t: t, nodes: map[uint64]*node{}, answers: map[uint64]Answer{}, inSync: true}
	for _, id := range []uint64{1, 2, 3} {
		c.add(id, &raftpb.ConfState{Voters: []uint64{1, 2, 3}})
	}
	n := c.elect(1)
	c.propose(n, AckAll, 10)
	c.run()
	c.wantNone(10) // no set is known
	n.Expire(10)
	c.run()
	if a := c.want(10, CommittedQuorumOnly); len(a.Missing) != 0 {
		t.Errorf("missing %v although no set is known", a.Missing)
	}
	term := n.Status().Term
	if n.CountInSync(term-1, InSync{1, []uint64{1, 2}}, nil) {
		t.Error("a set was counted for a term that is over")
	}
	if !n.CountInSync(term, InSync{4, []uint64{1, 2}}, nil) {
		t.Fatal("the set was refused")
	}
	c.cut = func(m *raftpb.Message) bool { return m.GetTo() == 3 }
	c.propose(n, AckAll, 11)
	c.run()
	if a := c.want(11, CommittedAll); a.Set != 4 {
		t.Errorf("set %d, want 4", a.Set)
	}
	if n.CountInSync(term, InSync{4, []uint64{1, 2}}, []uint64{1, 2, 3}) {
		t.Error("a replica may join the set that lacks what was answered")
	}
	c.cut = func(m *raftpb.Message) bool { return m.GetTo() == 2 }
	c.tick(3)
	if !n.CountInSync(term, InSync{4, []uint64{1, 2}}, []uint64{1, 2, 3}) {
		t.Error("a replica may not join the set although it has everything")
	}
	c.propose(n, AckAll, 12)
	c.run()
	c.wantNone(12)
	n.Expire(12)
	c.run()
	if a := c.want(12, CommittedQuorumOnly); !slices.Equal(a.Missing, []uint64{2}) {
		t.Errorf("missing %v, want 2", a.Missing)
	}
	// 2 leaves the set: what waited is answered under the new version.
	c.propose(n, AckAll, 13)
	c.run()
	c.wantNone(13)
	n.CountInSync(term, InSync{5, []uint64{1, 3}}, nil)
	c.run()
	if a := c.want(13, CommittedAll); a.Set != 5 {
		t.Errorf("set %d, want 5", a.Set)
	}
}
