// Package replica is what every replica of a group does with committed entries, whatever the kind: decode the
// batches, execute each command exactly once per session, and keep the machine's state, the sessions, the
// applied position and the configuration together, so that after a crash they are of one moment. It also
// writes that state as a snapshot and installs one.
//
// It is not concerned with consensus (package core) or with where entries come from: voters, learners and
// observers use it alike. It has no goroutine. One goroutine at a time may call the methods that change the
// replica or say so; Applied, ConfState, SnapshotMeta, Executes, View and StateView may be called from any.
//
// Keys, all below the group's prefix:
//
//	e/position            slot, position, time, configuration
//	e/terms               in which term what is covered was committed (core.Terms)
//	e/installed           where the state was that was last installed as a whole, until the log leads to it; local
//	e/level               the cluster level that the state is at, if it is not the first
//	e/doubtful            this replica's state is not what the others have (Quarantine); local
//	e/spare               what an interrupted transfer has left in the other slot (stage)
//	e/lost                how many writes this replica accepted and lost; local
//	e/s/<slot><client>    a session; without a client: how many were evicted
//	m/ or n/              the machine's state, by slot
//
// There are two slots so that a snapshot can be written beside the state that it replaces, in batches of
// bounded size, and be put in force by one write of e/position.
package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

var (
	// ErrDamaged wraps what must not be: a state record or a committed entry that cannot be decoded, or a
	// gap in what is applied. The replica must stop.
	ErrDamaged = errors.New("replica damaged")
	// ErrInterrupted says that the callback of Apply returned no configuration: nothing was applied.
	ErrInterrupted = errors.New("configuration change interrupted")
)

// Replica is a group's replicated state on this node.
type Replica struct {
	store    kv.Store
	machine  machine.Machine
	state    state // of the applier
	sessions sessions
	public   atomic.Pointer[state]
	// followForks: a snapshot of another history replaces the state. Else it is refused: what else the node
	// keeps for the group must be brought in order first.
	followForks bool
	hooks       Hooks
}

// state is the record e/position.
type state struct {
	slot slot
	at   core.Position
	time int64 // of the last command, Unix ns
	line Line
	conf *raftpb.ConfState // immutable; nil: not known (an observer, or nothing was ever applied)

	// These have keys of their own: they seldom change.
	level      uint64 // at least core.FirstLevel
	terms      core.Terms
	quarantine *Quarantine // nil: the state is trusted

	installed core.Position // see Standing

	written uint64 // see Written; not kept: where the state was when it was loaded
}

const stateVersion = 2

// Line says which line of log a state is of. It is part of the state: a replica that was away while the group was
// restored or recovered still knows that its own state belongs to the line that was given up.
type Line struct {
	History [16]byte
	// Before is the history that this one was cut from, behind Fork, the last entry that both share. Zero: none.
	Before [16]byte
	Fork   core.Position
	// Start is the index of the first entry of the line's own, behind the tail Fork.Index+1..Start-1, which Seed had in
	// its log at the fork and has committed since; Seed is the replica that the fork made the only voter. Configuration
	// changes up to Start are void: the configuration is Seed alone after the fork, and only what comes behind Start
	// changes it. 0: there was no fork, or it is not known.
	Start, Seed uint64
}

// Append appends l's encoding: both histories, then term and index of the fork, start and seed.
func (l Line) Append(buf []byte) []byte {
	buf = append(append(buf, l.History[:]...), l.Before[:]...)
	for _, v := range []uint64{l.Fork.Term, l.Fork.Index, l.Start, l.Seed} {
		buf = binary.AppendUvarint(buf, v)
	}
	return buf
}

// ParseLine decodes what Append wrote, and nothing else.
func ParseLine(b []byte) (Line, error) {
	d := reader{rest: b}
	l := d.line()
	if d.bad || len(d.rest) > 0 {
		return Line{}, fmt.Errorf("line of %d bytes: %w", len(b), ErrDamaged)
	}
	return l, nil
}

func (d *reader) line() (l Line) {
	copy(l.History[:], d.bytes(16))
	copy(l.Before[:], d.bytes(16))
	l.Fork = core.Position{Term: d.uvarint(), Index: d.uvarint()}
	l.Start, l.Seed = d.uvarint(), d.uvarint()
	return l
}

var (
	positionKey   = []byte("e/position")
	termsKey      = []byte("e/terms")
	quarantineKey = []byte("e/doubtful")
	lossesKey     = []byte("e/lost")
	installedKey  = []byte("e/installed")
)

// Open loads the replica that store, which is the group's part of the node's state, holds; an empty one is at
// the zero position. It calls m.Restored.
func Open(store kv.Store, m machine.Machine) (*Replica, error) {
	return OpenLimited(store, m, DefaultLimits())
}

// OpenLimited is Open with other bounds, none above the default.
func OpenLimited(store kv.Store, m machine.Machine, limits Limits) (*Replica, error) {
	r := &Replica{store: store, machine: m, sessions: sessions{limits: limits}}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	if err := r.dropStale(); err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	return r, nil
}

// Reload forgets what is in memory and loads the state again: what an Apply that has failed leaves is undefined. For
// the applier.
func (r *Replica) Reload() error {
	if err := r.load(); err != nil {
		return fmt.Errorf("load replica again: %w", err)
	}
	return nil
}

func (r *Replica) load() error {
	level, err := readLevel(r.store) // before anything that a later level may keep in another way
	if err != nil {
		return err
	}
	if !r.knows(level) {
		return r.newer(level)
	}
	st, err := readState(r.store)
	if err != nil {
		return err
	}
	if err := r.sessions.load(r.store, st.slot); err != nil {
		return err
	}
	if st.quarantine, err = readQuarantine(r.store); err != nil {
		return err
	}
	st.written = st.at.Index
	r.state = st
	r.publish()
	if err := r.machine.Restored(kv.PrefixedReader(r.store, st.slot.machine()), st.at.Index); err != nil {
		return fmt.Errorf("machine at %d: %w", st.at.Index, err)
	}
	return nil
}

func (r *Replica) publish() {
	st := r.state
	r.public.Store(&st)
}

// Init is InitLine with the zero line.
func (r *Replica) Init(meta *raftpb.SnapshotMetadata) error { return r.InitLine(meta, Line{}) }

// InitLine records, durably, the position and the configuration that a new group starts from with an empty state,
// and its line. It does nothing if the replica has a position already.
func (r *Replica) InitLine(meta *raftpb.SnapshotMetadata, line Line) error {
	if r.state.at.Index != 0 {
		return nil
	}
	st := r.state
	st.at = core.Position{Term: meta.GetTerm(), Index: meta.GetIndex()}
	st.conf, st.line, st.written = meta.GetConfState(), line, st.at.Index
	st.terms = st.terms.Note(st.at)
	if err := r.force(st); err != nil {
		return fmt.Errorf("initialise replica: %w", err)
	}
	return nil
}

// Adopt records, durably, that the state, unchanged, is of another line from now on: one that was cut from its own
// at or above the state's position. For the applier.
func (r *Replica) Adopt(line Line) error {
	if line == r.state.line {
		return nil
	}
	if line.Before == r.state.line.History && line.Fork.Index < r.state.at.Index {
		return fmt.Errorf("adopt a line that was cut at %d: the state is at %d", line.Fork.Index, r.state.at.Index)
	}
	st := r.state
	st.line = line
	if err := r.force(st); err != nil {
		return fmt.Errorf("adopt line at %d: %w", st.at.Index, err)
	}
	return nil
}

// force makes st, which differs in nothing but the position's record, durable and puts it in force.
func (r *Replica) force(st state) error {
	b := r.store.Batch()
	defer b.Discard()
	if err := b.Set(termsKey, st.terms.Append(nil)); err != nil {
		return err
	}
	if err := st.write(b); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	if err := r.store.Sync(); err != nil {
		return err
	}
	r.state = st
	r.publish()
	return nil
}

// Sync makes everything that was applied before the call durable. Any goroutine may call it.
func (r *Replica) Sync() error { return r.store.Sync() }

// Line is the line of log that the state is of.
func (r *Replica) Line() Line { return r.public.Load().line }

// FollowForks has a snapshot of another history replace the state, which is otherwise refused. To be called before
// anything else is.
func (r *Replica) FollowForks() { r.followForks = true }

// Size is about how many bytes a snapshot of the state has.
func (r *Replica) Size() (uint64, error) {
	p := r.public.Load().slot.machine()
	return r.store.Size(p, kv.PrefixEnd(p))
}

// Applied is the position that the state covers.
func (r *Replica) Applied() core.Position { return r.public.Load().at }

// Written is the last index up to Applied that may hold more than the engine's own commands: behind it replicas that were
// equal are.
func (r *Replica) Written() uint64 { return r.public.Load().written }

// ConfState is the configuration in force at Applied; nil if it is not known.
func (r *Replica) ConfState() *raftpb.ConfState { return r.public.Load().conf }

// Terms of everything that Applied covers, as far back as they are remembered.
func (r *Replica) Terms() core.Terms { return r.public.Load().terms }

// Covered is Applied with its Terms, of one moment.
func (r *Replica) Covered() (core.Position, core.Terms) {
	st := r.public.Load()
	return st.at, st.terms
}

// Standing of the replica, of one moment.
func (r *Replica) Standing() Standing { return r.public.Load().standing() }

// SnapshotMeta is Applied and its configuration in raft's form: what a log must be reset to that ends before
// Applied, which happens when a crash comes after the installation of a snapshot and before the reset.
func (r *Replica) SnapshotMeta() *raftpb.SnapshotMetadata { return r.public.Load().meta() }

func (st *state) meta() *raftpb.SnapshotMetadata {
	return &raftpb.SnapshotMetadata{
		Index: proto.Uint64(st.at.Index), Term: proto.Uint64(st.at.Term),
		ConfState: raftpb.EnsureConfState(proto.CloneOf(st.conf)),
	}
}

// StateView is a point-in-time view of the whole replica: for PositionOf, MachineView and WriteSnapshot.
func (r *Replica) StateView() kv.View { return r.store.View() }

// PositionOf is the position that a StateView is at.
func (r *Replica) PositionOf(view kv.Reader) (core.Position, error) {
	st, err := readState(view)
	return st.at, err
}

// MachineView is the machine's part of a StateView.
func (r *Replica) MachineView(view kv.Reader) (kv.Reader, error) {
	st, err := readState(view)
	if err != nil {
		return nil, err
	}
	return kv.PrefixedReader(view, st.slot.machine()), nil
}

// View is a point-in-time view of the machine's state.
func (r *Replica) View() kv.View {
	v := r.store.View()
	part, err := r.MachineView(v)
	return &view{Reader: part, whole: v, err: err}
}

// view is the machine's part of whole; a view that could not be made says so when it is read.
type view struct {
	kv.Reader
	whole kv.View
	err   error
}

func (v *view) Get(key []byte) ([]byte, bool, error) {
	if v.err != nil {
		return nil, false, v.err
	}
	return v.Reader.Get(key)
}

func (v *view) Lookup(keys [][]byte, visit func(i int, value []byte) error) error {
	if v.err != nil {
		return v.err
	}
	return v.Reader.Lookup(keys, visit)
}

func (v *view) Scan(from, to []byte, visit func(key, value []byte) error) error {
	if v.err != nil {
		return v.err
	}
	return v.Reader.Scan(from, to, visit)
}

func (v *view) Close() error { return v.whole.Close() }

// Digest is the machine's: equal state, equal digest. It may write memos. For the applier.
func (r *Replica) Digest() (machine.Digest, error) {
	b := r.store.Batch()
	defer b.Discard()
	d, err := r.machine.Digest(kv.PrefixedTx(b, r.state.slot.machine()))
	if err != nil {
		return d, fmt.Errorf("digest at %d: %w", r.state.at.Index, err)
	}
	if err := b.Commit(); err != nil {
		return d, fmt.Errorf("digest at %d: %w", r.state.at.Index, err)
	}
	return d, nil
}

// Sessions is how many sessions are remembered. For the applier.
func (r *Replica) Sessions() int { return len(r.sessions.by) }

// Recomputer is the machine if its Digest is not of the records themselves.
func (r *Replica) Recomputer() (machine.Recomputer, bool) {
	m, ok := r.machine.(machine.Recomputer)
	return m, ok
}

// Executes says whether p is certain to be executed when it is applied behind what was applied so far and ahead, and
// nothing else: a leader may promise that before it is committed.
func (r *Replica) Executes(p *core.Proposal, ahead core.Ahead) bool {
	return r.sessions.executes(p, ahead)
}

// EngineDigest is of what the engine itself replicates: level, time and sessions. The first level is left out, as it is
// of the state itself (levelKey). For the applier.
func (r *Replica) EngineDigest() machine.Digest {
	h := blake3.New()
	var buf []byte
	if r.state.level > core.FirstLevel {
		buf = binary.AppendUvarint(buf, r.state.level)
	}
	buf = binary.AppendVarint(buf, r.state.time)
	buf = binary.AppendUvarint(buf, r.sessions.evicted)
	for s := r.sessions.oldest(); s != nil; s = s.newer {
		buf = append(buf, s.client[:]...)
		buf = s.encode(buf)
		h.Write(buf)
		buf = buf[:0]
	}
	h.Write(buf)
	return machine.Digest(h.Sum(nil))
}

// slot names one of the two places for a state.
type slot byte

func (s slot) other() slot { return 1 - s }

func (s slot) machine() []byte {
	if s == 0 {
		return []byte("m/")
	}
	return []byte("n/")
}

func (s slot) sessions() []byte { return []byte{'e', '/', 's', '/', '0' + byte(s)} }

// clear deletes the slot's state.
func (s slot) clear(tx kv.Tx) error {
	for _, p := range [][]byte{s.machine(), s.sessions()} {
		if err := tx.DeleteRange(p, kv.PrefixEnd(p)); err != nil {
			return err
		}
	}
	return nil
}

func readState(r kv.Reader) (state, error) {
	level, err := readLevel(r)
	if err != nil {
		return state{}, err
	}
	v, found, err := r.Get(positionKey)
	if err != nil || !found {
		return state{level: level}, err
	}
	d := reader{rest: v}
	st := state{level: level}
	if version := d.uvarint(); version != stateVersion {
		return st, fmt.Errorf("position of version %d: %w", version, ErrDamaged)
	}
	st.slot = slot(d.uvarint())
	st.at = core.Position{Term: d.uvarint(), Index: d.uvarint()}
	st.time = d.varint()
	st.line = d.line()
	if d.uvarint() == 1 {
		st.conf = &raftpb.ConfState{}
		if err := proto.Unmarshal(d.rest, st.conf); err != nil {
			return st, fmt.Errorf("configuration at %d: %w: %w", st.at.Index, ErrDamaged, err)
		}
	}
	if d.bad || st.slot > 1 {
		return st, fmt.Errorf("position of %d bytes: %w", len(v), ErrDamaged)
	}
	if st.installed, err = readInstalled(r); err != nil {
		return st, err
	}
	st.terms, err = readTerms(r, st.at)
	return st, err
}

// readInstalled reads where the state was that was last installed; zero: none ever was.
func readInstalled(r kv.Reader) (core.Position, error) {
	v, found, err := r.Get(installedKey)
	if err != nil || !found {
		return core.Position{}, err
	}
	d := reader{rest: v}
	at := core.Position{Term: d.uvarint(), Index: d.uvarint()}
	if d.bad || len(d.rest) > 0 {
		return at, fmt.Errorf("installed position of %d bytes: %w", len(v), ErrDamaged)
	}
	return at, nil
}

// readTerms reads the terms of a state that ends at at.
func readTerms(r kv.Reader, at core.Position) (core.Terms, error) {
	v, found, err := r.Get(termsKey)
	if err != nil {
		return core.Terms{}, err
	}
	if !found { // nothing is known of what came before
		return core.Terms{}.Note(at), nil
	}
	t, err := core.DecodeTerms(v)
	if err != nil {
		return t, fmt.Errorf("terms up to %d: %w: %w", at.Index, ErrDamaged, err)
	}
	return t, nil
}

// writeAll writes what seldom changes too. An installed state is trusted until it is compared.
func (st *state) writeAll(tx kv.Tx) error {
	if err := tx.Set(installedKey, binary.AppendUvarint(binary.AppendUvarint(nil, st.installed.Term), st.installed.Index)); err != nil {
		return err
	}
	if err := tx.Set(termsKey, st.terms.Append(nil)); err != nil {
		return err
	}
	if err := tx.Delete(quarantineKey); err != nil {
		return err
	}
	if err := writeLevel(tx, st.level); err != nil {
		return err
	}
	return st.write(tx)
}

func (st *state) write(tx kv.Tx) error {
	buf := make([]byte, 0, 64)
	buf = binary.AppendUvarint(buf, stateVersion)
	buf = binary.AppendUvarint(buf, uint64(st.slot))
	buf = binary.AppendUvarint(buf, st.at.Term)
	buf = binary.AppendUvarint(buf, st.at.Index)
	buf = st.line.Append(binary.AppendVarint(buf, st.time))
	if st.conf == nil {
		return tx.Set(positionKey, binary.AppendUvarint(buf, 0))
	}
	buf, err := proto.MarshalOptions{}.MarshalAppend(binary.AppendUvarint(buf, 1), st.conf)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	return tx.Set(positionKey, buf)
}

// reader decodes from the front of rest; after the first error everything is zero and bad is set.
type reader struct {
	rest []byte
	bad  bool
}

func (d *reader) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if d.bad || n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *reader) varint() int64 {
	v, n := binary.Varint(d.rest)
	if d.bad || n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *reader) bytes(n uint64) []byte {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad, d.rest = true, nil
		return nil
	}
	out := d.rest[:n:n]
	d.rest = d.rest[n:]
	return out
}
