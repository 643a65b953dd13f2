package core

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

const (
	maxBytesPerMessage = 1 << 20
	maxBytesInflight   = 64 << 20
	maxBytesApplying   = 8 << 20
)

// Group is one replica of one group. Methods are events; none blocks. Call Effects after a round of events
// and carry it out. A panic out of a method is a *Fault: this replica is finished, the process is not.
type Group struct {
	cfg Config
	rn  *raft.RawNode

	role    Role
	term    uint64
	leader  uint64
	applied uint64

	ready    []raft.Ready             // taken from raft, and no effects yet
	restored *raftpb.SnapshotMetadata // of the newest state that raft went on from; nil: none

	applying uint64 // index of the last entry handed out in an Apply
	last     uint64 // index of the last entry handed out in an Append

	// termBegun is set while leading once an entry of this term was committed: only then does a leader
	// know everything that was committed before it.
	termBegun bool
	begunAt   uint64 // an index of this term, then: below it are all entries of earlier ones

	now     int64              // highest time proposed so far
	pending queue              // proposals and changes in log order
	aloft   map[[16]byte]aloft // by session: its proposals in pending
	waitAll []waiting
	inSync  inSync
	doubts  []doubt
	lost    []Loss
	change  bool // a Change of this replica is pending
	reads   reads
	succeed succession
	silence int    // ticks since a leader was heard of
	heard   uint64 // which; 0: none yet
	plan    RoomPlan
	unheard map[uint64]int // while there is need for a plan: ticks since a peer was heard of; none: it just was

	sends   []*raftpb.Message
	answers []Answer
}

// New makes a group from what its storage holds. Errors: a Config out of range; ErrLogBehind, ErrLogAhead;
// what Storage returned.
func New(cfg Config) (*Group, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("open group %d replica %d: %w", cfg.Group, cfg.Replica, err)
	}
	storage, err := reconcile(&cfg)
	if err != nil {
		return nil, fmt.Errorf("open group %d replica %d: %w", cfg.Group, cfg.Replica, err)
	}
	g := &Group{cfg: cfg, term: storage.hard.GetTerm(), applied: cfg.Applied, applying: cfg.Applied, aloft: map[[16]byte]aloft{}}
	defer g.blame("New")
	if g.last, err = storage.LastIndex(); err != nil {
		return nil, fmt.Errorf("open group %d: read last index: %w", cfg.Group, err)
	}
	g.rn, err = raft.NewRawNode(&raft.Config{
		ID:                        cfg.Replica,
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             cfg.HeartbeatTicks,
		Storage:                   storage,
		Applied:                   cfg.Applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             maxBytesPerMessage,
		MaxCommittedSizePerReady:  maxBytesApplying,
		MaxUncommittedEntriesSize: cfg.MaxUncommitted,
		MaxInflightMsgs:           cfg.MaxInflight,
		MaxInflightBytes:          maxBytesInflight,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    cfg.Logger,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
	})
	if err != nil {
		return nil, fmt.Errorf("open group %d replica %d: %w", cfg.Group, cfg.Replica, err)
	}
	if err := g.findDoubts(storage); err != nil {
		return nil, fmt.Errorf("open group %d replica %d: %w", cfg.Group, cfg.Replica, err)
	}
	return g, nil
}

func (c *Config) complete() error {
	if c.ElectionTicks == 0 {
		c.ElectionTicks = 10
	}
	if c.HeartbeatTicks == 0 {
		c.HeartbeatTicks = 2
	}
	if c.MaxEntryBytes == 0 {
		c.MaxEntryBytes = 1 << 20
	}
	if c.MaxUncommitted == 0 {
		c.MaxUncommitted = 64 << 20
	}
	if c.MaxInflight == 0 {
		c.MaxInflight = 256
	}
	if c.Logger == nil {
		c.Logger = NewLogger(c.Group, c.Replica, nil)
	}
	switch {
	case c.Replica == 0 || raft.IsLocalMsgTarget(c.Replica):
		return fmt.Errorf("replica id %d is reserved", c.Replica)
	case c.Nonce == 0:
		return errors.New("nonce is 0")
	case c.Storage == nil:
		return errors.New("no storage")
	case c.HeartbeatTicks < 0 || c.ElectionTicks < 3*c.HeartbeatTicks:
		return fmt.Errorf("election after %d ticks, heartbeats each %d: want at least three to one",
			c.ElectionTicks, c.HeartbeatTicks)
	case c.MaxInflight < 0:
		return fmt.Errorf("max inflight %d is negative", c.MaxInflight)
	}
	return nil
}

// Tick is one clock tick (100 ms).
func (g *Group) Tick() {
	defer g.blame("Tick")
	g.tickRaft()
	g.reads.tick()
	g.tickSuccession()
	g.tickSilence()
	g.mindRoom()
}

// Receive takes a message from a peer; a MsgSnap only after the state that it describes was installed. An
// error means that the message was refused, which never harms: the peer is not (or no longer) a member, or
// sent what no peer may send.
func (g *Group) Receive(m *raftpb.Message) error {
	defer g.blame("Receive")
	switch t := m.GetType(); {
	case raft.IsLocalMsg(t), t == raftpb.MsgProp, t == raftpb.MsgForgetLeader, t == raftpb.MsgTransferLeader:
		return fmt.Errorf("receive %s from replica %d: not for peers", t, m.GetFrom())
	case m.GetFrom() == 0 || m.GetFrom() == g.cfg.Replica || raft.IsLocalMsgTarget(m.GetFrom()):
		return fmt.Errorf("receive %s: sender %d is reserved", t, m.GetFrom())
	case t == raftpb.MsgReadIndex && g.mayKnowLess():
		return nil // the follower asks again
	}
	g.hear(m)
	if g.unwelcome(m) {
		return fmt.Errorf("receive %s from replica %d: %w", m.GetType(), m.GetFrom(), ErrNoRoom)
	}
	if err := g.rn.Step(m); err != nil {
		return fmt.Errorf("receive %s from replica %d: %w", m.GetType(), m.GetFrom(), err)
	}
	switch m.GetType() {
	case raftpb.MsgSnap:
		g.noteRestored()
	case raftpb.MsgPreVote:
		g.tellCommitted(m)
	}
	return nil
}

// noteRestored looks whether raft goes on from the state that it was just told of, and so from that state's configuration,
// rather than by the entries that lead there. Only what it has ready tells.
func (g *Group) noteRestored() {
	if !g.rn.HasReady() {
		return
	}
	rd := g.rn.Ready()
	g.ready = append(g.ready, rd)
	if !raft.IsEmptySnap(rd.Snapshot) {
		g.restored = rd.Snapshot.GetMetadata()
	}
}

// ErrNoRoom: the message was dropped because the disk is full; the peer repeats what matters.
var ErrNoRoom = errors.New("the disk is full")

// Transfer hands leadership over to a voter; ignored unless this replica leads. Until it is done or an
// election timeout has passed, proposals are Busy.
func (g *Group) Transfer(to uint64) {
	defer g.blame("Transfer")
	if g.role == Leader {
		g.rn.TransferLeader(to)
	}
}

// Unreachable says that a message to replica could not be sent.
func (g *Group) Unreachable(replica uint64) {
	defer g.blame("Unreachable")
	g.rn.ReportUnreachable(replica)
}

// SnapshotSent ends what Effects.Snapshots began: the state was installed by replica, or it was not. It must
// be called exactly once for each of them, else the follower gets nothing more.
func (g *Group) SnapshotSent(replica uint64, ok bool) {
	defer g.blame("SnapshotSent")
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	g.rn.ReportSnapshot(replica, status)
}

// Appended says that a, and every Append before it, is durable.
func (g *Group) Appended(a *Append) {
	defer g.blame("Appended")
	if a.term != 0 && a.term == g.term && g.role == Leader && len(a.Entries) > 0 {
		g.accept(a.Entries[len(a.Entries)-1].GetIndex())
	}
	if a.Snapshot != nil {
		g.applied = max(g.applied, a.Snapshot.GetMetadata().GetIndex())
		g.settleDoubts()
	}
	for _, m := range a.done {
		if m.GetTo() == g.cfg.Replica {
			g.stepOwn(m)
		} else {
			g.sends = append(g.sends, m)
		}
	}
	a.done = nil
}

// Applied says that the state includes a. results[i][j] answers proposal j of entry i; it may be shorter
// than a.Entries, and an entry without results (of a change, of another leader) may be nil.
func (g *Group) Applied(a *Apply, results [][][]byte) {
	defer g.blame("Applied")
	for i, e := range a.Entries {
		var rs [][]byte
		if i < len(results) {
			rs = results[i]
		}
		g.resolve(Position{Term: e.GetTerm(), Index: e.GetIndex()}, rs)
	}
	if n := len(a.Entries); n > 0 {
		g.applied = max(g.applied, a.Entries[n-1].GetIndex())
		g.settleDoubts()
	}
	for _, m := range a.done {
		g.stepOwn(m)
	}
	a.done = nil
}

// stepOwn delivers one of raft's own messages; raft drops the outdated ones without an error.
func (g *Group) stepOwn(m *raftpb.Message) {
	if err := g.rn.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
		panic(fmt.Errorf("step own %s: %w", m.GetType(), err))
	}
}

// Effects returns what the events since the last call ask for. any is false if that is nothing, else there may
// be more: call it until then.
func (g *Group) Effects() (e Effects, any bool) {
	defer g.blame("Effects")
	g.runSuccession()
	g.issueReads()
	if len(g.ready) == 0 && g.rn.HasReady() {
		g.ready = append(g.ready, g.rn.Ready())
	}
	if len(g.ready) > 0 {
		g.takeReady(&g.ready[0], &e)
		g.ready = slices.Delete(g.ready, 0, 1)
	}
	g.answerAll()
	g.answerReads()
	if len(g.sends) > 0 {
		e.Send = append(e.Send, g.sends...)
		clear(g.sends)
		g.sends = g.sends[:0]
	}
	e.Answers, g.answers = g.answers, nil
	e.Lost, g.lost = g.lost, nil
	any = len(e.Send) > 0 || e.Append != nil || e.Apply != nil || len(e.Answers) > 0 || len(e.Snapshots) > 0 || len(e.Lost) > 0
	return e, any || len(g.ready) > 0 || g.readsDue()
}

func (g *Group) takeReady(rd *raft.Ready, e *Effects) {
	if rd.HardState != nil && rd.HardState.GetTerm() != g.term {
		g.lose() // first: what is pending belongs to the old term
		g.term = rd.HardState.GetTerm()
	}
	if rd.SoftState != nil {
		g.switchRole(rd.SoftState)
	}
	if g.role == Leader {
		g.assign(rd.Entries)
	}
	if n := len(rd.Entries); n > 0 {
		g.last = rd.Entries[n-1].GetIndex()
	} else if !raft.IsEmptySnap(rd.Snapshot) {
		g.last = rd.Snapshot.GetMetadata().GetIndex()
	}
	if n := len(rd.CommittedEntries); n > 0 {
		g.applying = rd.CommittedEntries[n-1].GetIndex()
		if !g.termBegun && g.role == Leader && rd.CommittedEntries[n-1].GetTerm() == g.term {
			g.termBegun, g.begunAt = true, g.applying
			g.inSync.upTo = g.applying // an earlier leader may have answered CommittedAll up to here
		}
	}
	for _, rs := range rd.ReadStates {
		g.reads.confirm(g.cfg.Nonce, rs)
	}
	keep := rd.Messages[:0]
	for _, m := range rd.Messages {
		switch m.GetType() {
		case raftpb.MsgStorageAppend:
			e.Append = g.newAppend(rd, m)
		case raftpb.MsgStorageApply:
			e.Apply = &Apply{Entries: m.GetEntries(), done: m.GetResponses()}
		case raftpb.MsgSnap:
			e.Snapshots = append(e.Snapshots, m)
		default:
			keep = append(keep, m)
		}
	}
	clear(rd.Messages[len(keep):])
	e.Send = slices.Clip(keep)
}

func (g *Group) newAppend(rd *raft.Ready, m *raftpb.Message) *Append {
	a := &Append{Entries: m.GetEntries(), HardState: rd.HardState, done: m.GetResponses()}
	if raft.IsEmptyHardState(rd.HardState) {
		a.HardState = nil
	}
	if !raft.IsEmptySnap(rd.Snapshot) {
		a.Snapshot = rd.Snapshot
	}
	// A commit index alone needs no sync; the responses then speak of earlier appends only.
	a.Sync = rd.MustSync || a.Snapshot != nil
	if g.role == Leader {
		a.term = g.term
	}
	return a
}

func (g *Group) switchRole(s *raft.SoftState) {
	role := roleOf(s.RaftState)
	if role != Leader {
		g.lose()
	}
	if role != g.role {
		g.termBegun, g.plan, g.unheard = false, RoomPlan{}, nil
	}
	if g.leader != s.Lead {
		g.reads.again()
	}
	g.role, g.leader = role, s.Lead
}
