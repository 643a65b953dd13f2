package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Disks of a bubble fill up, while everything else goes wrong and once more when nothing else does (roomDrill). The
// bubble plays what the server knows of them: a node knows its own at once, its peers' by what they say twice a second.
// The log goes on in its reserve, of which it must use no more than reserveLimit; the state store may have to wait.

const (
	faultFull    = "disk full"
	faultAllFull = "all disks full"
	seenMoved    = "leadership left a full disk"
	seenRefused  = "write refused for want of room"
	seenResumed  = "written again, there being room"
)

// reserveLimit is how many bytes of entries a full node may write: what the engine grants its replicas, and what was on
// its way to the disk when that filled up.
const reserveLimit = 6 << 20

// bubbleDisk is the room on a node's disk; the disk outlives processes.
type bubbleDisk struct {
	full atomic.Bool

	mu    sync.Mutex
	room  chan struct{} // closed: the state store need not wait
	used  int           // bytes of entries that were written since the disk filled up
	freed time.Time     // last
}

func newBubbleDisk() *bubbleDisk {
	d := &bubbleDisk{room: make(chan struct{})}
	close(d.room)
	return d
}

// fill takes the room away; waits: that of the state store as well. Of a full disk it changes nothing.
func (d *bubbleDisk) fill(waits bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full.Swap(true) {
		return
	}
	d.used = 0
	if waits {
		d.room = make(chan struct{})
	}
}

func (d *bubbleDisk) free() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.full.Swap(false) {
		return
	}
	d.freed = time.Now()
	select {
	case <-d.room:
	default:
		close(d.room)
	}
}

// await returns when the state store can write, or with an error when the process ends.
func (d *bubbleDisk) await(l *life) error {
	d.mu.Lock()
	room := d.room
	d.mu.Unlock()
	select {
	case <-room:
		return nil
	case <-l.dead.Done():
		return fmt.Errorf("node %d: no room on the disk when the process ended", l.node.id)
	}
}

// charge notes what is written to the log; an error says that more of the reserve is gone than may be.
func (d *bubbleDisk) charge(ws []logstore.Write) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.full.Load() {
		return nil
	}
	for _, w := range ws {
		for _, e := range w.Entries {
			d.used += len(e.GetData())
		}
	}
	if d.used > reserveLimit {
		return fmt.Errorf("%d bytes of entries were written to a full disk", d.used)
	}
	return nil
}

// fullWithin says whether the disk was full at some time within the last d.
func (d *bubbleDisk) fullWithin(last time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.full.Load() || !d.freed.IsZero() && time.Since(d.freed) < last
}

// bubbleRoom is engine.Room as one life of a node has it.
type bubbleRoom struct {
	own   *bubbleDisk
	heard []atomic.Bool // by id: what peers have said
	some  atomic.Bool   // one of them did
}

func (r *bubbleRoom) Full() bool              { return r.own.full.Load() }
func (r *bubbleRoom) FullAt(node uint64) bool { return r.heard[node].Load() }
func (r *bubbleRoom) Scarce() bool            { return r.some.Load() || r.Full() }

// listen hears from the peers until the process ends.
func (l *life) listen() {
	for l.dead.Err() == nil {
		some := false
		for _, n := range l.node.b.nodes {
			full := n != l.node && n.running() != nil && !l.node.b.net.isCut(n.id, l.node.id) && n.disk.full.Load()
			l.room.heard[n.id].Store(full)
			some = some || full
		}
		l.room.some.Store(some)
		pause(l.dead, 500*time.Millisecond)
	}
}

// waitingState is a state store that waits for room.
type waitingState struct {
	kv.Store
	l *life
}

func (s waitingState) Batch() kv.Batch   { return waitingBatch{s.Store.Batch(), s.l} }
func (s waitingState) Through() kv.Store { return waitingState{s.Store.Through(), s.l} }

func (s waitingState) Sync() error {
	if err := s.l.node.disk.await(s.l); err != nil {
		return err
	}
	return s.Store.Sync()
}

type waitingBatch struct {
	kv.Batch
	l *life
}

func (b waitingBatch) Commit() error {
	if err := b.l.node.disk.await(b.l); err != nil {
		return err
	}
	return b.Batch.Commit()
}

// refused notes a write that was not taken for want of room; some disk must be full, or have been until lately.
func (gr *bubbleGroup) refuse(value uint64) {
	gr.b.count(seenRefused)
	if !slices.ContainsFunc(gr.b.nodes, func(n *bubbleNode) bool { return n.disk.fullWithin(10 * time.Second) }) {
		gr.b.wrong(fmt.Errorf("group %d: a write was refused for want of room, and no disk is full", gr.id))
	}
	gr.refused = append(gr.refused, value)
}

// roomDrill fills disks while nothing else is wrong: leadership has to go where there is room, writes go on there; with
// no room anywhere they are refused, reads are not; with room they go on.
func (b *bubble) roomDrill(ctx context.Context) error {
	if err := b.each(ctx, time.Minute, "all voters are back", (*bubbleGroup).whole); err != nil {
		return err
	}
	voters := b.nodes[:b.shape.voters]
	if len(voters) >= 3 {
		n := voters[b.roll(len(voters))]
		if _, at := b.groups[0].led(); at != nil {
			n = at.node
		}
		b.count(faultFull)
		n.disk.fill(b.roll(2) == 0)
		err := b.each(ctx, 20*time.Second, fmt.Sprintf("leadership has left node %d, whose disk is full", n.id),
			func(gr *bubbleGroup, _ context.Context) error { return gr.ledElsewhere(n) })
		if err != nil {
			return err
		}
		b.count(seenMoved)
		if err := b.each(ctx, 20*time.Second, "writes go on", (*bubbleGroup).flood); err != nil {
			return err
		}
		n.disk.free()
	}
	b.count(faultAllFull)
	for _, n := range voters {
		n.disk.fill(false)
	}
	if err := b.each(ctx, 20*time.Second, "writes are refused", (*bubbleGroup).putRefused); err != nil {
		return err
	}
	if err := b.each(ctx, 20*time.Second, "reads go on", (*bubbleGroup).readAtLeader); err != nil {
		return err
	}
	for _, n := range voters {
		n.disk.free()
	}
	if err := b.each(ctx, 30*time.Second, "writes go on, there being room", (*bubbleGroup).put); err != nil {
		return err
	}
	b.count(seenResumed)
	return nil
}

// each waits until what is true of every group.
func (b *bubble) each(ctx context.Context, within time.Duration, what string, is func(*bubbleGroup, context.Context) error) error {
	for _, gr := range b.groups {
		deadline := time.Now().Add(within)
		for {
			err := is(gr, ctx)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("group %d: not within %v: %s: %w", gr.id, within, what, err)
			}
			pause(ctx, 200*time.Millisecond)
		}
	}
	return nil
}

// led is the status of the leader whose term has begun, and its process; nil: nobody leads.
func (gr *bubbleGroup) led() (best core.Status, at *life) {
	for _, n := range gr.b.nodes[:gr.b.shape.voters] {
		l := n.running()
		if l == nil {
			continue
		}
		if g, ok := l.engine.Group(gr.id); ok {
			if st := g.Fresh(); st.Role == core.Leader && st.TermBegun && st.Term > best.Term {
				best, at = st, l
			}
		}
	}
	return best, at
}

var errNotLed = errors.New("nobody leads")

// whole: every voter is one, and caught up.
func (gr *bubbleGroup) whole(ctx context.Context) error {
	gr.readmit(ctx)
	st, at := gr.led()
	if at == nil {
		return errNotLed
	}
	for _, p := range st.Peers {
		if !p.RecentActive || p.Match < st.Commit {
			return fmt.Errorf("replica %d is at %d of %d, active %v", p.Replica, p.Match, st.Commit, p.RecentActive)
		}
	}
	if len(st.Voters) != gr.b.shape.voters {
		return fmt.Errorf("voters %v", st.Voters)
	}
	return nil
}

func (gr *bubbleGroup) ledElsewhere(n *bubbleNode) error {
	if _, at := gr.led(); at == nil {
		return errNotLed
	} else if at.node == n {
		return fmt.Errorf("node %d leads", n.id)
	}
	return nil
}

// put writes a little.
func (gr *bubbleGroup) put(ctx context.Context) error { return gr.putBytes(ctx, 100) }

// flood writes more than the grace of a full disk.
func (gr *bubbleGroup) flood(ctx context.Context) error {
	for range 12 {
		if err := gr.putBytes(ctx, 700<<10); err != nil {
			return err
		}
	}
	return nil
}

func (gr *bubbleGroup) putBytes(ctx context.Context, size int) error {
	_, at := gr.led()
	if at == nil {
		return errNotLed
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return gr.swap(ctx, 0, gr.session(at), core.AckQuorum, size)
}

func (gr *bubbleGroup) putRefused(ctx context.Context) error {
	if err := gr.put(ctx); !errors.Is(err, engine.ErrFull) {
		return fmt.Errorf("all disks are full, and a write ends with: %w", errors.Join(err, errNotRefused))
	}
	return nil
}

var errNotRefused = errors.New("it was not refused")

func (gr *bubbleGroup) readAtLeader(ctx context.Context) error {
	_, at := gr.led()
	if at == nil {
		return errNotLed
	}
	g, ok := at.engine.Group(gr.id)
	if !ok {
		return errNotLed
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := g.Barrier(ctx)
	return err
}
