package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// TestStateSurvivesInterruption: a state that breaks off goes on where it was, and is paced.
func TestStateSurvivesInterruption(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const rate = 4 << 20
		f := newFarm(t, 3, func(f *farm) { f.rate = rate })
		defer f.close()
		f.write(60, 512<<10) // 30 MiB
		f.fabric.breakAt[11] = 20 << 20
		f.reaches(1)
		began := time.Now()
		o := f.observe(11, 1)
		f.until("a state is on its way", func() bool { c := o.Catchup(); return c.Mode == ModeSnap && c.Received > 0 && c.Rule == "R7" })
		f.reaches(11)
		took, sent := time.Since(began), f.fabric.engine(1).SnapshotBytes()+f.fabric.engine(2).SnapshotBytes()+f.fabric.engine(3).SnapshotBytes()
		if sent < 30<<20 || sent > 42<<20 {
			t.Errorf("%d MiB were sent for 30 MiB in two pieces", sent>>20)
		}
		if least := time.Duration(float64(sent) / rate * 0.9 * float64(time.Second)); took < least {
			t.Errorf("%d MiB came in %v, faster than allowed", sent>>20, took)
		}
		if f.fabric.opened[[2]uint64{11, 1}] < 3 {
			t.Errorf("the connection did not break: %v", f.fabric.opened)
		}
	})
}

// TestStatePinsTheLog: while a learner gets a state, and until it is live, entries behind that state stay in the log,
// however much is written meanwhile.
func TestStatePinsTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, func(f *farm) { f.rate, f.config.RetainBytes = 1<<20, 256<<10 })
		defer f.close()
		f.write(20, 512<<10)
		f.reaches(1) // a follower may lag behind what is acknowledged, and what a state lacks comes as entries, unpaced
		o := f.observe(11, 1)
		f.until("a state is on its way", func() bool { return o.Catchup().Received > 0 })
		at, looks := f.index, 0
		for ; o.Catchup().Mode != ModeLive; looks++ {
			f.write(1, 512<<10)
			wait(time.Second)
			synctest.Wait() // between being acknowledged and being live nothing waits
			first, err := f.groups[1].log.FirstIndex()
			if c := o.Catchup(); c.Mode != ModeLive && (err != nil || first > at+1) {
				t.Errorf("the log begins at %d (%v), the state is at %d or below, the learner's mode is %s", first, err, at, c.Mode)
			}
		}
		if looks < 5 {
			t.Errorf("10 MiB came in %d s at 1 MiB/s", looks)
		}
		f.reaches(11)
		if got := f.fabric.opened[[2]uint64{11, 1}]; got != 2 {
			t.Errorf("%d connections: the state did not do", got)
		}
		f.until("the log is cut", func() bool {
			f.write(1, 512<<10)
			first, err := f.groups[1].log.FirstIndex()
			return err == nil && first > at
		})
	})
}

// TestBarrier: who is live is durable: whatever a crash leaves of its disk holds everything that ended catching up.
func TestBarrier(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(30, 100)
		o := f.observe(11, 1)
		f.until("it is live", func() bool { return o.Catchup().Mode == ModeLive })
		f.kill(11) // and comes back by entries
		f.write(30, 100)
		f.reaches(1)
		o = f.observe(11, 1)
		// Whichever voter feeds it, and however often it attaches: what counts is where the catching up ended.
		f.until("it is live again", func() bool { c := o.Catchup(); return c.Mode == ModeLive && c.To >= f.index })
		if c := o.Catchup(); c.By == ModeSnap {
			t.Errorf("it came back by %s: %s", c.By, c.Why)
		}
		crashed := f.states[11].Crash(func(int) int { return 0 })
		rep, err := replica.Open(kv.Prefixed(crashed, groupPrefix(testGroup)), counter{})
		if err != nil || rep.Applied().Index < f.index {
			t.Errorf("after a crash it is at %v (%v), it was live at %d", rep.Applied(), err, f.index)
		}
		f.write(5, 100)
		f.reaches(11)
		f.until("the live entries are acknowledged as durable", func() bool {
			for _, g := range f.groups {
				if g.src.count() > 0 && g.pins.lowest(f.index) == f.index {
					return true
				}
			}
			return false
		})
	})
}

// TestVoterGetsAStateAfterTruncation: a voter that was away for longer than the log is kept comes back by SNAP.
func TestVoterGetsAStateAfterTruncation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, func(f *farm) { f.config.RetainBytes = 64 << 10 })
		defer f.close()
		f.write(5, 100)
		f.kill(3)
		at := f.index
		f.until("the logs are cut behind what 3 has", func() bool {
			f.write(2, 64<<10)
			cut := 0
			for _, g := range f.groups {
				if first, err := g.log.FirstIndex(); err == nil && first > at+1 {
					cut++
				}
			}
			return cut == 2
		})
		f.startVoter(3)
		f.reaches(3)
		g := f.groups[3]
		f.until("3 is live", func() bool { return g.Catchup().Mode == ModeLive })
		if c := g.Catchup(); c.Rule != "R5" || c.Upstream == 0 {
			t.Errorf("3 came back by %s: %s, fed by %d", c.Rule, c.Why, c.Upstream)
		}
		f.write(5, 100)
		f.reaches(3)
	})
}
