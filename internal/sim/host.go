package sim

import (
	"errors"
	"slices"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// host is a process with its disk: one log, one writer of it and one state for all groups, as a node has them.
type host struct {
	w  *world
	id uint64

	logs      disk
	store     *kv.Memory
	full      bool // there is no room but the log's reserve
	saidFull  bool // what the others know of that
	reserve   reserve
	lost      bool  // the disk has lost its logs for good: no replica of it starts again
	lostAt    int64 // when it did
	doubtful  bool  // a bit of its logs has flipped, and nobody has looked since
	alteredAt int64 // when one did last; 0: never

	knows      uint64 // newest level that its program knows
	level      uint64 // that it acts under, marked on its disk; 0: none yet
	introduced bool   // the control group has heard of this run

	up, paused bool
	run        int // counts starts; what belongs to an earlier one is void
	held       []func()
	skew       int64
	drift      int64 // added to each tick
	slow       int64 // factor of disk times
	failing    bool  // the next write returns an error

	members   []*member   // by group, id-1; nil: none
	observers []*observer // likewise

	appends []queued
	writing []queued
	lazy    []logstore.Write // written without a sync: on the disk with the next one that is synced
}

// queued is an append that waits for the writer.
type queued struct {
	m   *member
	run int // of the member
	a   *core.Append
}

func (w *world) addHost() *host {
	h := &host{
		w: w, id: uint64(len(w.hosts) + 1), slow: 1,
		store:     kv.NewMemory(),
		knows:     w.drawProgram(),
		skew:      int64(w.dice.clock.NormFloat64() * float64(second)),
		drift:     int64(w.dice.clock.NormFloat64() * 0.03 * float64(w.shape.tick)),
		members:   make([]*member, w.shape.groups),
		observers: make([]*observer, w.shape.groups),
	}
	h.logs = w.newDisk(h.id)
	w.hosts = append(w.hosts, h)
	return h
}

// start opens whatever the disk holds and runs; a host whose disk is full, or has lost its logs, does not, nor one whose
// program does not know the level that the disk is marked with.
func (h *host) start() {
	if h.up || h.full || h.lost {
		return
	}
	if h.level > h.knows {
		h.w.report.StartsRefused++
		return
	}
	h.run++
	h.up, h.paused, h.failing, h.introduced = true, false, false, false
	for i := range h.members {
		if m := h.members[i]; m != nil {
			m.start()
		}
		if o := h.observers[i]; o != nil {
			o.start()
		}
	}
	h.doubtful = false // whatever has flipped was found: a log is read when its replica starts, not before
	h.later(h.w.dice.clock.Int64N(h.w.shape.tick), h.tick)
	h.later(spread(h.w.dice.disk, h.w.shape.checkpoint), h.checkpoint)
	if h.w.cluster != nil {
		h.later(spread(h.w.dice.roll, 100*milli), h.introduce)
	}
}

// crash ends the process; what its disk then holds is drawn.
func (h *host) crash() {
	r := h.w.dice.disk
	var inFlight []logstore.Write
	if n := len(h.writing); n > 0 || len(h.lazy) > 0 {
		inFlight = slices.Concat(h.lazy, writesOf(h.writing[:r.IntN(n+1)]))
		inFlight = inFlight[:r.IntN(len(inFlight)+1)]
	}
	h.up = false
	if logs, err := h.logs.crash(inFlight); err == nil {
		h.logs = logs
	} else if h.doubtful && errors.Is(err, logstore.ErrDamaged) {
		h.w.report.Damaged++
		h.lost, h.lostAt = true, h.w.now
	} else {
		must(err, "open log after a crash")
	}
	h.store = h.store.Crash(func(n int) int { return r.IntN(n + 1) })
	h.run++
	h.held, h.appends, h.writing, h.lazy = nil, nil, nil, nil
	for i := range h.members {
		if m := h.members[i]; m != nil {
			m.stop()
		}
		if o := h.observers[i]; o != nil {
			o.stop()
		}
	}
	h.w.report.Crashes++
	h.w.trace(traceCrash, h.id)
}

// do runs an event of the host now, or when its pause ends, or never if it is down.
func (h *host) do(f func()) {
	switch {
	case !h.up:
	case h.paused:
		h.held = append(h.held, f)
	case h.doubtful:
		h.shield(f)
	default:
		f()
	}
}

// clock is the time of day as the host has it.
func (h *host) clock() int64 {
	if h.w.shape.still {
		return second
	}
	return h.w.now + h.skew
}

// suspect hosts may have lost what all their replicas acknowledged.
func (h *host) suspect() bool { return h.lost || h.doubtful }

// later is after, void once the process has ended.
func (h *host) later(d int64, f func()) {
	run := h.run
	h.w.after(d, func() {
		if h.run == run {
			h.do(f)
		}
	})
}

func (h *host) pause() { h.paused = true }

func (h *host) resume() {
	if !h.up || !h.paused {
		return
	}
	h.paused = false
	held := h.held
	h.held = nil
	for _, f := range held {
		h.do(f)
	}
}

func (h *host) tick() {
	h.saidFull = h.full
	for _, m := range h.members {
		if m.alive() {
			h.do(func() { m.g.Tick(); m.pump(); m.drive() })
		}
	}
	h.later(max(milli, h.w.shape.tick+h.drift), h.tick)
}

// writesOf leaves out what replicas were to write whose logs are damaged: there may be new ones already.
func writesOf(qs []queued) (ws []logstore.Write) {
	for _, q := range qs {
		if q.m.damaged {
			continue
		}
		w := logstore.Write{Group: q.m.gr.id, Entries: q.a.Entries, HardState: q.a.HardState}
		if q.a.Snapshot != nil {
			w.Snapshot = q.a.Snapshot.GetMetadata()
		}
		ws = append(ws, w)
	}
	return ws
}

// write takes everything that waits, of all groups, into one write, synced if one of it asks for that.
func (h *host) write() {
	if len(h.writing) > 0 || len(h.appends) == 0 {
		return
	}
	h.writing, h.appends = h.appends, h.writing[:0]
	sync := slices.ContainsFunc(h.writing, func(q queued) bool { return q.a.Sync })
	d := 5 * micro
	if sync {
		d = 20*micro + h.slow*spread(h.w.dice.disk, h.w.shape.syncTime)
	}
	h.later(d, func() { h.written(sync) })
}

func (h *host) written(sync bool) {
	if h.failing { // an error of the disk is final: nothing of this write was acknowledged, nothing will be
		h.logs.fail()
		_ = h.logs.Write(slices.Concat(h.lazy, writesOf(h.writing))) // some of it may be there in the end
		h.w.nemesis.crash(h.w, h, second)
		return
	}
	done := h.writing
	h.writing = nil
	h.lazy = append(h.lazy, writesOf(done)...)
	if sync {
		must(h.logs.Write(h.lazy), "write log")
		h.lazy = nil
		if len(h.appends) == 0 {
			must(h.logs.Idle(), "mark log")
		}
	}
	for _, q := range done {
		if q.m.alive() && q.m.run == q.run {
			h.do(func() { q.m.g.Appended(q.a); q.m.pump() })
			if !h.up {
				return // what followed from it ended the process
			}
		}
	}
	h.write()
}

// checkpoint makes the state durable and truncates the logs below it.
func (h *host) checkpoint() {
	h.later(h.slow*spread(h.w.dice.disk, 5*milli), func() {
		if h.failing {
			h.w.nemesis.crash(h.w, h, second)
			return
		}
		if h.full { // it waits for room
			h.later(spread(h.w.dice.disk, h.w.shape.checkpoint), h.checkpoint)
			return
		}
		must(h.store.Sync(), "sync state")
		for _, m := range h.members {
			if m.alive() && len(h.writing) == 0 {
				m.truncate()
			}
		}
		h.later(spread(h.w.dice.disk, h.w.shape.checkpoint), h.checkpoint)
	})
}
