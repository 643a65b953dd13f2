package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// chain is three voters and three observers behind one of them.
func chain(t *testing.T) *farm {
	f := newFarm(t, 3, nil)
	f.write(5, 100)
	f.observe(11, 1, 2, 3)
	f.observe(12, 11, 1, 2)
	f.observe(13, 12, 11, 2)
	f.fedBy(11, 1, 1)
	f.fedBy(12, 11, 2)
	f.fedBy(13, 12, 3)
	f.write(20, 100)
	for _, n := range []uint64{11, 12, 13} {
		f.reaches(n)
	}
	return f
}

// TestChainLosesItsMiddle: who was fed by it goes on within two seconds, by DIFF, through a fallback, and nothing is
// lost or applied twice. A process that dies is noticed at once; a node that falls silent, by its silence.
func TestChainLosesItsMiddle(t *testing.T) {
	for name, silent := range map[string]bool{"killed": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := chain(t)
				defer f.close()
				began := time.Now()
				limit := 100 * time.Millisecond
				if silent {
					f.fabric.setSilent(12, true)
					limit = 2 * time.Second
				} else {
					f.kill(12)
				}
				f.write(1, 100)
				f.reaches(13)
				if gap := time.Since(began); gap > limit {
					t.Errorf("13 was without news for %v", gap)
				}
				f.fedBy(13, 11, 2)
				if c := f.observers[13].Catchup(); c.Rule != "R4" && c.Rule != "R3" {
					t.Errorf("13 came back by %s: %s", c.Rule, c.Why)
				}
				f.write(10, 100)
				f.reaches(13)
				if silent {
					f.fabric.setSilent(12, false)
				} else {
					f.observe(12, 11, 1, 2)
				}
				f.reaches(12)
				f.fedBy(13, 12, 3) // home again
				f.write(10, 100)
				f.reaches(13)
			})
		})
	}
}

// TestCutOffFromTheVoters: an upstream that lives but has lost its own way to the voters is left for a fallback that
// has one.
func TestCutOffFromTheVoters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(3, 100)
		// 11 may use voter 1 only, which is going to be killed.
		o, err := f.open(11).Observe(ObserverConfig{ID: testGroup, Machine: counter{}, Members: voters{1}})
		if err != nil {
			t.Fatal(err)
		}
		f.observers[11] = o
		f.observe(12, 11, 2, 3)
		f.fedBy(12, 11, 2)
		f.session = f.fabric.engine(2).NewSession(testGroup, f.voters, [16]byte{2})
		f.kill(1)
		f.write(1, 100)
		began := time.Now()
		f.reaches(12)
		if gap := time.Since(began); gap > 4*time.Second {
			t.Errorf("12 stayed with a source that is cut off for %v", gap)
		}
		f.fedBy(12, 2, 1)
		if c := o.Catchup(); c.Mode != ModeDetached || c.Why == "" {
			t.Errorf("11 is %s: %s", c.Mode, c.Why)
		}
	})
}

// TestRelayThatForgot: a relay that was restarted has no entries to offer; who lacks some gets them from a fallback,
// as DIFF, not the whole state from the relay.
func TestRelayThatForgot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(5, 100)
		f.observe(11, 1)
		f.observe(12, 11, 2)
		f.fedBy(12, 11, 2)
		f.kill(12)
		f.write(30, 100)
		f.reaches(11)
		f.kill(11)
		f.observe(11, 1)
		f.fedBy(11, 1, 1)
		o := f.observe(12, 11, 2)
		f.until("12 is live again", func() bool { return o.Catchup().Mode == ModeLive })
		if c := o.Catchup(); c.Rule != "R4" || c.Upstream != 2 {
			t.Errorf("12 was fed by %d: %s %s", c.Upstream, c.Rule, c.Why)
		}
		f.reaches(12)
		f.fedBy(12, 11, 2) // and goes home once it lacks nothing
	})
}

// TestNoLoops: two observers that are told to feed each other do not.
func TestNoLoops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(5, 100)
		f.observe(11, 12, 1)
		f.observe(12, 11, 2)
		f.observe(13, 12, 11)
		for range 20 {
			f.write(2, 100)
			for _, n := range []uint64{11, 12, 13} {
				f.reaches(n)
			}
			wait(time.Second)
			loop := func() bool { // for a moment, while both move at once, is no harm
				a, b := f.observers[11].path(), f.observers[12].path()
				return len(a) > 1 && len(b) > 1 && a[1] == 12 && b[1] == 11
			}
			for began := time.Now(); loop(); wait(10 * time.Millisecond) {
				if time.Since(began) > time.Second {
					t.Fatalf("a loop: %v", f.observers[11].path())
				}
			}
		}
	})
}

// TestDepthGuard: nobody is fed more than eight hops from a voter.
func TestDepthGuard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 1, nil)
		defer f.close()
		f.write(5, 100)
		upstream := uint64(1)
		for n := uint64(11); n <= 18; n++ {
			f.observe(n, upstream, 1)
			f.fedBy(n, upstream, int(n-10))
			upstream = n
		}
		f.observe(19, 18, 1)
		f.until("19 is fed by the voter", func() bool { c := f.observers[19].Catchup(); return c.Mode == ModeLive && c.Upstream == 1 })
		f.write(5, 100)
		f.reaches(19)
		f.reaches(18)
	})
}

// blocking is a machine whose Apply can be held.
type blocking struct {
	counter
	hold chan struct{} // nil: it runs; closed: it runs again
}

func (b *blocking) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	<-b.hold
	return b.counter.Apply(tx, cmd)
}

// TestSlowChild: one that takes nothing holds up neither its siblings nor its upstream, is cut off, lets the log go,
// and gets what it lacks when it can.
func TestSlowChild(t *testing.T) {
	bubble(t, func(t *testing.T) {
		held := make(chan struct{})
		f := newFarm(t, 3, func(f *farm) {
			f.config.RetainBytes = 1 << 20
			f.machine = func(node uint64) machine.Machine {
				if node == 12 {
					return &blocking{hold: held}
				}
				return counter{}
			}
		})
		defer f.close()
		f.observe(11, 1)
		f.observe(12, 11)
		f.observe(13, 11)
		f.fedBy(11, 1, 1)
		f.fedBy(13, 11, 2)
		f.until("12 is attached", func() bool { return f.observers[11].src.count() == 2 })
		for range 40 {
			f.write(4, 512<<10)
			f.reaches(11)
			f.reaches(13)
			wait(time.Second)
		}
		f.until("12 is cut off", func() bool { return f.observers[11].src.count() == 1 })
		first, err := f.groups[1].log.FirstIndex()
		if err != nil || first < 50 {
			t.Errorf("the log still begins at %d (%v): the slow child holds it", first, err)
		}
		close(held)
		f.reaches(12)
	})
}

// TestStuckChild: one that owes acknowledgements for a little, and never sends them, is sent away, too: it would keep
// the log from being cut.
func TestStuckChild(t *testing.T) {
	bubble(t, func(t *testing.T) {
		held := make(chan struct{})
		f := newFarm(t, 1, func(f *farm) {
			f.machine = func(node uint64) machine.Machine {
				if node == 11 {
					return &blocking{hold: held}
				}
				return counter{}
			}
		})
		defer f.close()
		f.write(5, 100)
		s := f.groups[1].src
		c := &child{acks: make(chan struct{}, 1), next: f.index + 1, acked: f.index - 2, limit: 1 << 30}
		tick := make(chan time.Time, 1)
		beats := func() (n int, err error) {
			for ; err == nil && n < 1000; n++ {
				tick <- time.Now()
				_, err = s.await(t.Context(), c, nil, tick)
			}
			return n, err
		}
		if n, err := beats(); err != errSlow || n != int(ackPatience/feedBeat)+1 {
			t.Errorf("after %d beats: %v", n, err)
		}
		f.observe(11, 1)
		f.fedBy(11, 1, 1)
		f.write(2, 100)
		wait(2 * ackPatience)
		if n := f.groups[1].pins.lowest(f.index); n != f.index {
			t.Errorf("after %v it still holds the log at %d", 2*ackPatience, n)
		}
		close(held)
		f.reaches(11)
	})
}

// TestDivergedIsReplaced: a state that ends in another entry than the group's is not used any more and is replaced,
// but only when a voter says so.
func TestDivergedIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(5, 100)
		f.observe(11, 1)
		f.observe(12, 11, 1)
		f.fedBy(12, 11, 2)
		f.reaches(12)
		f.kill(12)
		// An entry of a term that never was: 12 has something else at its last index.
		rep, err := replica.Open(kv.Prefixed(f.states[12], groupPrefix(testGroup)), counter{})
		if err != nil {
			t.Fatal(err)
		}
		at := rep.Applied()
		if err := forge(f.states[12], core.Position{Term: at.Term + 9, Index: at.Index}); err != nil {
			t.Fatal(err)
		}
		o := f.observe(12, 11, 1)
		f.until("12 has another state", func() bool { return o.Catchup().Mode == ModeLive })
		if c := o.Catchup(); c.Rule != "R2" || c.By != ModeSnap || !strings.Contains(c.Why, "has term") {
			t.Errorf("12 was replaced by %s: %s %s", c.By, c.Rule, c.Why)
		}
		if got := o.Applied(); got.Term != at.Term {
			t.Errorf("12 is still at %v", got)
		}
		if o.rep.Quarantine() != nil {
			t.Error("12 is still in quarantine")
		}
		f.write(5, 100)
		f.reaches(12)
	})
}

// forge puts another position on a state.
func forge(store kv.Store, at core.Position) error {
	s := kv.Prefixed(store, groupPrefix(testGroup))
	v, _, err := s.Get([]byte("e/position"))
	if err != nil {
		return err
	}
	v[2] = byte(at.Term) // version, slot, term: one byte each here
	b := s.Batch()
	if err := b.Set([]byte("e/position"), v); err != nil {
		return err
	}
	return b.Commit()
}

// TestModeIsOfTheDecision: a follower that lacked nothing is live by R3 at once, not by whatever is written next; one
// that lacked entries says so.
func TestModeIsOfTheDecision(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(5, 100)
		f.reaches(3)
		f.kill(3)
		f.write(7, 100)
		f.startVoter(3)
		f.reaches(3)
		g := f.groups[3]
		f.until("3 is live", func() bool { return g.Catchup().Mode == ModeLive })
		if c := g.Catchup(); c.Rule != "R4" || !strings.Contains(c.Why, "missing") {
			t.Errorf("3 came back by %s: %s", c.Rule, c.Why)
		}
	})
}

// TestAThousandObservers: in a tree of fan-out eight the voters send eight copies, and the last observer is four hops
// away. Real protocol, simulated network.
func TestAThousandObservers(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand engines")
	}
	bubble(t, func(t *testing.T) {
		const n, k = 1000, 8
		f := newFarm(t, 3, func(f *farm) { f.tail = 64 << 10 })
		defer f.close()
		f.write(5, 100)
		node := func(seat int) uint64 { return uint64(100 + seat) }
		for i := range n {
			if i < k {
				f.observe(node(i), uint64(i%3+1))
			} else {
				f.observe(node(i), node(i/k-1), 1)
			}
		}
		// Who was fed by somebody else until its own upstream had something to feed it with has left that one.
		f.until("everybody is at home", func() bool {
			for i := range n {
				up, hops := uint64(i%3+1), 1
				for at := i; at >= k; at = at/k - 1 {
					up, hops = node(i/k-1), hops+1
				}
				if c := f.observers[node(i)].Catchup(); c.Mode != ModeLive || c.Upstream != up || c.Hops != hops || hops > 4 {
					return false
				}
			}
			return f.copies() == n
		})
		root, opened := 0, f.fabric.connections()
		for _, g := range f.groups {
			root += g.src.count()
		}
		if root != k {
			t.Errorf("the voters send %d copies", root)
		}
		f.write(20, 100)
		const size = 32 << 10 // what is remembered for them is twice that
		before, began := f.fabric.sentBy(f.voters...), time.Now()
		f.write(1, size)
		most, depth, byHops := 0, 0, map[int]int{}
		for i := range n {
			f.reaches(node(i))
			c := f.observers[node(i)].src.count()
			if c > k {
				t.Errorf("observer %d feeds %d", i, c)
			}
			hops := f.observers[node(i)].Catchup().Hops
			most, depth = max(most, c), max(depth, hops)
			byHops[hops]++
		}
		sent, took := f.fabric.sentBy(f.voters...)-before, time.Since(began)
		before = f.fabric.sentBy(f.voters...)
		<-time.After(took)
		beats := f.fabric.sentBy(f.voters...) - before
		copies := float64(sent-beats) / size
		if copies >= k+1 { // what is above k is said about the entry: that it is committed, who has it
			t.Errorf("of a write of %d bytes the voters send %.1f times as much", size, copies)
		}
		t.Logf("%d observers in a tree:%d: the voters feed %d and send %.2f times what is written, no observer feeds more than %d, the last is %d hops behind; by hops: %v",
			n, k, root, copies, most, depth, byHops)
		if now := f.fabric.connections(); now != opened {
			t.Errorf("%d new connections: somebody has left its upstream for a write", now-opened)
		}
	})
}

// TestRelayIsAskedWhileItApplies: what a relay has applied a moment before it can pass it on is passed on a moment
// later; nobody is sent away for that.
func TestRelayIsAskedWhileItApplies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 1, func(f *farm) {
			f.machine = func(node uint64) machine.Machine {
				if node == 11 {
					return lingering{}
				}
				return counter{}
			}
		})
		defer f.close()
		f.observe(11, 1)
		f.fedBy(11, 1, 1)
		f.observe(12, 11)
		f.fedBy(12, 11, 2)
		opened := f.fabric.connections()
		for range 5 {
			f.write(1, 100)
			f.reaches(12)
		}
		if now := f.fabric.connections(); now != opened {
			t.Errorf("%d new connections", now-opened)
		}
	})
}

// lingering takes its time between committing a batch and whatever comes next.
type lingering struct{ counter }

func (lingering) Committed(uint64) { wait(2 * feedBeat) }

// TestGarbageIsRefused: what is no HELLO, is of another cluster or version, or too large, ends that connection alone,
// with a reason.
func TestGarbageIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 1, nil)
		defer f.close()
		f.write(3, 100)
		e := f.fabric.engine(1)
		ask := func(send func(io.Writer)) (welcome, error) {
			a, b := net.Pipe()
			done := make(chan struct{})
			go func() { defer close(done); defer b.Close(); e.ServeFeed(context.Background(), 9, b) }()
			go func() { send(a) }()
			var w welcome
			err := readJSON(a, &w)
			a.Close()
			<-done
			return w, err
		}
		good := hello{Version: feedVersion, Cluster: e.cfg.Cluster, Group: testGroup}
		with := func(change func(*hello)) func(io.Writer) {
			h := good
			change(&h)
			return func(w io.Writer) { _ = writeJSON(w, frameHello, h) }
		}
		for name, c := range map[string]struct {
			send func(io.Writer)
			why  string
		}{
			"another cluster": {with(func(h *hello) { h.Cluster[3]++ }), "another cluster"},
			"another version": {with(func(h *hello) { h.Version++ }), "version"},
			"another group":   {with(func(h *hello) { h.Group++ }), "does not hold"},
			"good":            {with(func(*hello) {}), "empty"},
		} {
			if w, err := ask(c.send); err != nil || !strings.Contains(w.Plan.Why, c.why) {
				t.Errorf("%s: %+v, %v", name, w.Plan, err)
			}
		}
		for name, b := range map[string][]byte{
			"garbage":    bytes.Repeat([]byte{0xa5}, 64),
			"too large":  {0, 2, 0, 0, 0},
			"not JSON":   {0, 0, 0, 1, 0, '{'},
			"wrong kind": {0, 0, 0, 2, 1, '{', '}'},
		} {
			if w, err := ask(func(w io.Writer) { _, _ = w.Write(b) }); err == nil {
				t.Errorf("%s: answered %+v", name, w)
			}
		}
		f.write(3, 100)
	})
}

// TestTopologyChanges: an observer goes over to another upstream when it is told to, without a gap.
func TestTopologyChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(3, 100)
		f.observe(11, 1)
		upstream := make(chan uint64, 1)
		upstream <- 2
		o, err := f.open(12).Observe(ObserverConfig{ID: testGroup, Machine: counter{}, Members: f.voters, Sources: func() []uint64 {
			n := <-upstream
			upstream <- n
			return []uint64{n}
		}})
		if err != nil {
			t.Fatal(err)
		}
		f.observers[12] = o
		f.fedBy(12, 2, 1)
		<-upstream
		upstream <- 11
		began := time.Now()
		o.Reconsider()
		f.fedBy(12, 11, 2)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		f.write(5, 100)
		f.reaches(12)
		if got := fmt.Sprint(o.path()); got != "[12 11 1]" {
			t.Errorf("path %s", got)
		}
	})
}

// TestOnlyAVoterIsBelieved: a relay that says that the states have diverged may be the one that has.
func TestOnlyAVoterIsBelieved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 1, nil)
		defer f.close()
		f.write(5, 100)
		o := f.observe(11, 1)
		f.fedBy(11, 1, 1)
		says := func(voter bool) *link {
			return &link{welcome: welcome{Voter: voter, Line: o.rep.Line(), Plan: catchup.Plan{Mode: catchup.Diverged, Rule: "R2", Why: "x"}}}
		}
		if keep, err := o.judge(says(false)); keep || err == nil || o.rep.Quarantine() != nil {
			t.Errorf("a relay was believed: %v, %v", keep, err)
		}
		if _, err := o.judge(says(true)); err != nil || o.rep.Quarantine() == nil {
			t.Errorf("a voter was not believed: %v", err)
		}
	})
}
