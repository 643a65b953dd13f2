package engine

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Forks. A group whose majority is gone for good, or that was restored, goes on under a new history that one
// replica, the seed, begins (Recover). What must hold:
//
//   - F1 Replicas of different histories never take part in one another's consensus: every raft message, proposal
//     and read carries the group with a tag of the sender's history, and one of another history is refused.
//   - F2 The seed keeps all of its log, also what it does not know to be committed: what a majority that held the
//     seed acknowledged is kept. The fork is recorded at the seed's commit index, up to which every replica of
//     the old history holds the same or less.
//   - F3 Right after the fork the seed is the only voter. Configuration changes of the time before are void for
//     every replica on the new line (Line.Start), so nobody can count votes by the old configuration.
//   - F4 A replica of the old history comes to the new one by Rebase: with its state if that ends at or below the
//     fork, its log cut to it; else empty. It votes in the new history only once the seed, or who was elected
//     after it, has made it a voter there. So a replica id votes, in one history, from one log.
//   - F5 A history is drawn at random, once per fork: two recoveries of one history are strangers (F1), and are
//     told so.

// ErrOtherHistory: the other side follows another history of the group.
var ErrOtherHistory = errors.New("engine: another history of the group")

// maxGroup bounds group ids: on the wire a group is its id in the low 32 bits and a tag of the history above.
const maxGroup = 1<<32 - 1

// wireGroup is a group as frames and calls name it. The tag is 0 as long as the history is not known.
func wireGroup(group uint64, h [16]byte) uint64 {
	return group | uint64(historyTag(h))<<32
}

func historyTag(h [16]byte) uint32 {
	if h == ([16]byte{}) {
		return 0
	}
	return max(1, binary.BigEndian.Uint32(h[:]))
}

func splitWire(key uint64) (group uint64, tag uint32) { return key & maxGroup, uint32(key >> 32) }

// ours says whether what carries tag may speak to a replica of history h: not knowing a history is no conflict,
// since who has none has no state, vote or acknowledgement either.
func ours(tag uint32, h [16]byte) bool {
	own := historyTag(h)
	return tag == own || tag == 0 || own == 0
}

// lineOf is the line of this node's replica of a group, voting or observing.
func (e *Engine) lineOf(group uint64) replica.Line {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if rep, ok := e.replicas[group]; ok {
		return rep.Line()
	}
	return replica.Line{}
}

func (e *Engine) unregister(group uint64, rep *replica.Replica) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.replicas[group] == rep {
		delete(e.replicas, group)
	}
}

// Line is the history that the replica follows; of one that has no state yet, the one it was started with.
func (g *Group) Line() replica.Line {
	if line := g.rep.Line(); line.History != ([16]byte{}) {
		return line
	}
	return replica.Line{History: g.cfg.History}
}

// Line is the history that the observer follows.
func (o *Observer) Line() replica.Line { return o.rep.Line() }

// historyName is a history as logs show it.
func historyName(h [16]byte) string { return hex.EncodeToString(h[:]) }

// MethodLine is the transport method by which a node is told that another one follows another history.
const MethodLine = "engine.line"

// tellAgain is how often a node is told of a history that is not its own.
const tellAgain = 2 * time.Second

// tell lets a node whose messages were refused know why; not more often than every tellAgain.
func (e *Engine) tell(node, group uint64, line replica.Line) {
	if e.lineOf(group).History != line.History {
		return // without a state it is not known here what the history comes from: the node would take us for a stranger
	}
	now := e.cfg.Now()
	e.mu.Lock()
	key := [2]uint64{node, group}
	if last, ok := e.told[key]; e.closed || ok && now.Sub(last) < tellAgain {
		e.mu.Unlock()
		return
	}
	e.told[key] = now
	e.tasks.Add(1)
	e.mu.Unlock()
	go func() {
		defer e.tasks.Done()
		ctx, cancel := context.WithTimeout(context.Background(), tellAgain)
		defer cancel()
		stop := context.AfterFunc(e.stopping, cancel)
		defer stop()
		reply, err := e.cfg.Transport.Call(ctx, node, MethodLine, line.Append(binary.BigEndian.AppendUint64(nil, group)))
		if theirs, parsed := replica.ParseLine(reply); err == nil && parsed == nil {
			e.hear(node, group, theirs)
		}
		e.cfg.Log.Warn("refused a message of another history", "group", group, "from", node, "history", historyName(line.History), "told", err == nil)
	}()
}

// ServeLine takes what another node tells about its history, and answers with this one's.
func (e *Engine) ServeLine(_ context.Context, from uint64, req []byte) ([]byte, error) {
	if len(req) < 8 {
		return nil, errShortMessage
	}
	group := binary.BigEndian.Uint64(req)
	theirs, err := replica.ParseLine(req[8:])
	if err != nil {
		return nil, err
	}
	e.hear(from, group, theirs)
	if mine := e.lineOf(group); mine.History != ([16]byte{}) {
		return mine.Append(nil), nil
	}
	return nil, nil
}

// hear compares another node's line with this one's.
func (e *Engine) hear(from, group uint64, theirs replica.Line) {
	mine := e.lineOf(group)
	none := [16]byte{}
	if mine.History == none || theirs.History == none || mine.History == theirs.History {
		return
	}
	if e.cfg.Forked != nil && mine.Before != theirs.History {
		e.cfg.Forked(Forked{Group: group, Node: from, Line: theirs, Superseded: theirs.Before == mine.History})
	}
}

// Forked is the news that another node follows another history of a group.
type Forked struct {
	Group, Node uint64
	Line        replica.Line // theirs
	// Superseded: theirs goes on from ours. Else neither comes from the other: there were two recoveries.
	Superseded bool
}

// RecoverConfig says which replica begins a new history of a group; it must not run.
type RecoverConfig struct {
	Group, Replica uint64
	History        [16]byte // new
	// Fork is the position to record as shared with the history of before, and Start the index of the first entry
	// of the new one, as they were agreed on; zero: what the log says now. It must not have grown since.
	Fork  core.Position
	Start uint64
	// StateOnly drops the log, which is damaged, and goes on from the state.
	StateOnly bool
	// Trust lifts the quarantine of the state: nobody has a better one, and people have decided to go on with it. Without
	// it a quarantine stays, and the replica heals from one that has joined it.
	Trust bool
}

// Recover makes one replica the only voter of a group under a new history, durably. It keeps its state and all
// of its log, which it commits by itself once started. A replica without a log, an observer's, gets one. Doing it
// again changes nothing.
func (e *Engine) Recover(cfg RecoverConfig) (line replica.Line, err error) {
	err = e.writer.do(func(s logstore.Store) error {
		line, err = Recover(s, e.cfg.State, cfg)
		return err
	})
	return line, err
}

// Recover is Engine.Recover on the stores of a node that does not run.
func Recover(logs logstore.Store, state kv.Store, cfg RecoverConfig) (replica.Line, error) {
	store := kv.Prefixed(state, groupPrefix(cfg.Group))
	st, err := replica.ReadStanding(store)
	if err != nil {
		return replica.Line{}, fmt.Errorf("engine: recover group %d: %w", cfg.Group, err)
	}
	if st.Line.History == cfg.History {
		return st.Line, nil
	}
	if st.At.Index == 0 {
		return replica.Line{}, fmt.Errorf("engine: recover group %d: this replica has no state", cfg.Group)
	}
	if cfg.StateOnly {
		if err := logs.Remove(cfg.Group); err != nil {
			return replica.Line{}, fmt.Errorf("engine: recover group %d: remove its log: %w", cfg.Group, err)
		}
	}
	conf := &raftpb.ConfState{Voters: []uint64{cfg.Replica}}
	end, err := logEnd(logs, cfg.Group, st, conf)
	if err != nil {
		return replica.Line{}, fmt.Errorf("engine: recover group %d: %w", cfg.Group, err)
	}
	// The first entry of the seed's own term follows what the log holds now; only after that come changes.
	line := replica.Line{History: cfg.History, Before: st.Line.History, Fork: end.Commit, Start: end.Last.Index + 1, Seed: cfg.Replica}
	if cfg.Start != 0 {
		if line.Start != cfg.Start {
			return line, fmt.Errorf("engine: recover group %d: the log goes to %d, not to %d as when the fork was agreed on",
				cfg.Group, end.Last.Index, cfg.Start-1)
		}
		line.Fork = cfg.Fork
	}
	if err := replica.Turn(store, line, conf, cfg.Trust); err != nil {
		return replica.Line{}, fmt.Errorf("engine: recover group %d: %w", cfg.Group, err)
	}
	return line, nil
}

// LogEnd is how far a replica's log goes.
type LogEnd struct {
	Commit, Last core.Position
}

// logEnd finds the end of a log, and makes one where there is none.
func logEnd(logs logstore.Store, group uint64, st replica.Standing, conf *raftpb.ConfState) (end LogEnd, err error) {
	log, found, err := logs.Log(group)
	if err == nil && !found {
		log, err = logs.Create(group, &raftpb.SnapshotMetadata{Index: &st.At.Index, Term: &st.At.Term, ConfState: conf})
	}
	if err != nil {
		return end, err
	}
	return stoppedEnd(log, st)
}

// stoppedEnd is readEnd for a replica that does not run; a log that is to be reset to the state ends there.
func stoppedEnd(log logstore.Log, st replica.Standing) (LogEnd, error) {
	fits, err := LogFits(log, st)
	if err != nil {
		return LogEnd{}, err
	}
	if !fits {
		return LogEnd{Commit: st.At, Last: st.At}, nil
	}
	return readEnd(log, st.At)
}

func readEnd(log logstore.Log, applied core.Position) (end LogEnd, err error) {
	hs, _, err := log.InitialState()
	if err != nil {
		return end, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return end, err
	}
	if last <= applied.Index { // a state was installed and the log not yet reset to it
		return LogEnd{Commit: applied, Last: applied}, nil
	}
	end.Last.Index, end.Commit.Index = last, max(applied.Index, min(hs.GetCommit(), last))
	if end.Last.Term, err = log.Term(last); err != nil {
		return end, err
	}
	end.Commit.Term, err = log.Term(end.Commit.Index)
	return end, err
}

// Standing is where a replica stands that does not run.
func (e *Engine) Standing(group uint64) (replica.Standing, error) {
	return StandingIn(e.cfg.State, group)
}

// StandingIn is Engine.Standing on the store of a node that does not run.
func StandingIn(state kv.Reader, group uint64) (replica.Standing, error) {
	return replica.ReadStanding(kv.PrefixedReader(state, groupPrefix(group)))
}

// MachineState reads the machine's state of a group on the store of a node that does not run, and the index that it
// covers.
func MachineState(state kv.Reader, group uint64) (kv.Reader, uint64, error) {
	return replica.ReadMachine(kv.PrefixedReader(state, groupPrefix(group)))
}

// StoppedEnd is where a replica that does not run stands, and how far its log goes; a replica without a log, an
// observer's, and one whose log is damaged end where they stand.
func (e *Engine) StoppedEnd(group uint64) (st replica.Standing, end LogEnd, err error) {
	err = e.writer.do(func(s logstore.Store) error {
		st, end, err = StoppedEnd(s, e.cfg.State, group)
		return err
	})
	return st, end, err
}

// StoppedEnd is Engine.StoppedEnd on the stores of a node that does not run.
func StoppedEnd(logs logstore.Store, state kv.Store, group uint64) (st replica.Standing, end LogEnd, err error) {
	if st, err = replica.ReadStanding(kv.Prefixed(state, groupPrefix(group))); err != nil {
		return st, end, err
	}
	log, found, err := logs.Log(group)
	if err == nil && found {
		end, err = stoppedEnd(log, st)
	}
	if errors.Is(err, logstore.ErrDamaged) || err == nil && !found {
		return st, LogEnd{Commit: st.At, Last: st.At}, nil
	}
	return st, end, err
}

// Standpoint is where a replica's log ends, on which history; the zero Standpoint is of one that has nothing, or is down.
type Standpoint struct {
	History [16]byte
	Last    core.Position
}

// Farthest is the one whose log goes farthest, as in an election: of those on the group's history if there are any, since
// indexes of others mean something else. -1: nobody has anything. With it a group begins that has lost its majority.
func Farthest(all []Standpoint, history [16]byte) int {
	better := func(a, b Standpoint) bool {
		switch {
		case (a.History == history) != (b.History == history):
			return a.History == history
		case a.Last.Term != b.Last.Term:
			return a.Last.Term > b.Last.Term
		}
		return a.Last.Index > b.Last.Index
	}
	best := -1
	for i, e := range all {
		if e.Last.Index > 0 && (best < 0 || better(e, all[best])) {
			best = i
		}
	}
	return best
}

// KeepsState says whether Rebase would take the state along.
func KeepsState(st replica.Standing, line replica.Line) bool {
	return st.Line.History == line.History ||
		line.Before == st.Line.History && st.At.Index > 0 && st.At.Index <= line.Fork.Index && line.Seed != 0
}

// LogEnd is how far this replica's log goes: what a recovery that it seeds would keep.
func (g *Group) LogEnd() (LogEnd, error) { return readEnd(g.log, g.rep.Applied()) }

// Rebase brings a replica that does not run to a line that its history leads to (rule R6), durably. kept says
// whether its state goes on: then the log was cut to it (TRUNC), and what is missing comes as DIFF; else log and
// state are gone, and the whole state comes as SNAP. What else the node keeps that refers to positions beyond
// the fork must then go as well.
func (e *Engine) Rebase(group uint64, line replica.Line) (kept bool, err error) {
	store := kv.Prefixed(e.cfg.State, groupPrefix(group))
	st, err := replica.ReadStanding(store)
	if err != nil {
		return false, fmt.Errorf("engine: rebase group %d: %w", group, err)
	}
	switch {
	case st.Line.History == line.History:
		return true, nil
	case st.At.Index == 0:
		return false, e.StopGroup(group, true)
	case !KeepsState(st, line):
		e.cfg.Log.Warn("the replica went on after the fork: it begins anew", "group", group, "at", st.At.Index,
			"fork", line.Fork.Index, "history", historyName(line.History))
		return false, e.StopGroup(group, true)
	}
	conf := &raftpb.ConfState{Voters: []uint64{line.Seed}}
	// The log first: a state on the new line must not find entries of the old one that it takes for committed.
	if err := e.writer.do(func(s logstore.Store) error { return cutLog(s, group, st.At, conf) }); err != nil {
		return false, fmt.Errorf("engine: rebase group %d: %w", group, err)
	}
	e.cfg.Log.Info("the replica goes on under another history", "group", group, "at", st.At.Index, "history", historyName(line.History))
	return true, replica.Turn(store, line, conf, false)
}

// cutLog drops everything above at; the term stays, so that what was said in it is not said twice.
func cutLog(s logstore.Store, group uint64, at core.Position, conf *raftpb.ConfState) error {
	log, found, err := s.Log(group)
	if err != nil || !found {
		return err
	}
	hs, _, err := log.InitialState()
	if err != nil {
		return err
	}
	return s.Write([]logstore.Write{{
		Group:    group,
		Snapshot: &raftpb.SnapshotMetadata{Index: &at.Index, Term: &at.Term, ConfState: conf},
		HardState: &raftpb.HardState{
			Term: proto.Uint64(max(hs.GetTerm(), at.Term)), Vote: proto.Uint64(0), Commit: proto.Uint64(at.Index),
		},
	}})
}
