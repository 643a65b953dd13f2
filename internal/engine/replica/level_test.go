package replica

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/zeebo/blake3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// leveled notes the level of every command.
type leveled struct {
	tally
	seen []uint64
}

func (l *leveled) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	l.seen = append(l.seen, cmd.Level)
	return l.tally.Apply(tx, cmd)
}

func openKnowing(t *testing.T, store kv.Store, m machine.Machine, level uint64) (*Replica, error) {
	t.Helper()
	limits := DefaultLimits()
	limits.Level = level
	r, err := OpenLimited(store, m, limits)
	if err == nil {
		err = r.Init(initial)
	}
	return r, err
}

func entryAt(index, level uint64, payload string) *raftpb.Entry {
	b := core.Batch{Level: level, Proposer: 1, ID: index, Proposals: []core.Proposal{{Payload: []byte(payload)}}}
	return &raftpb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(1), Data: core.EncodeBatch(&b)}
}

func wantNewer(t *testing.T, what string, err error, level, knows uint64) {
	t.Helper()
	var newer *NewerLevelError
	if !errors.As(err, &newer) || *newer != (NewerLevelError{level, knows}) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrSnapshot) {
		t.Errorf("%s: error %v", what, err)
	}
}

// The level rises with the entries, never falls, is part of the state, and does not depend on what the program knows.
func TestLevelIsOfTheLog(t *testing.T) {
	entries := []*raftpb.Entry{entryAt(2, 1, "a"), entryAt(3, 2, "b"), entryAt(4, 1, "c"), entryAt(5, 3, "d")}
	var sums [2][2]machine.Digest
	for i, knows := range []uint64{3, 9} {
		store := kv.NewMemory()
		m := &leveled{}
		r, err := openKnowing(t, store, m, knows)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, r, entries[:2]...)
		if r, err = openKnowing(t, store, m, knows); err != nil { // as after a restart
			t.Fatal(err)
		}
		apply(t, r, entries...)
		if want := []uint64{1, 2, 2, 3}; !slices.Equal(m.seen, want) || r.Level() != 3 {
			t.Errorf("a program that knows %d executes at %v, want %v; then it is at %d", knows, m.seen, want, r.Level())
		}
		sums[i] = digests(t, r)
	}
	if sums[0] != sums[1] {
		t.Error("the state depends on what the program knows")
	}
	r, _ := newReplica(t)
	apply(t, r, entryAt(2, 1, "a"), entryAt(3, 1, "b"), entryAt(4, 1, "c"), entryAt(5, 1, "d"))
	if now := digests(t, r); now[0] != sums[0][0] || now[1] == sums[0][1] {
		t.Error("the engine's digest does not tell the level")
	}
}

// A program that does not know a level stops in front of it, and what it has is as it was.
func TestNewerLevelIsNotTouched(t *testing.T) {
	store := kv.NewMemory()
	old, err := openKnowing(t, store, &tally{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, old, entryAt(2, 1, "a"))
	before := digests(t, old)
	unreadable := &raftpb.Entry{Index: proto.Uint64(4), Term: proto.Uint64(1), Data: []byte{2, 0xff}} // whatever level 2 is like
	_, err = old.Apply([]*raftpb.Entry{entryAt(3, 1, "b"), unreadable}, nil)
	wantNewer(t, "an entry", err, 2, 1)
	if err := old.Reload(); err != nil || old.Applied().Index != 2 || digests(t, old) != before {
		t.Errorf("at %+v, %v", old.Applied(), err)
	}

	newStore := kv.NewMemory()
	next, err := openKnowing(t, newStore, &tally{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, next, entryAt(2, 1, "a"), entryAt(3, 2, "b"), entryAt(4, 2, "c"))
	snapshot := snapshotOf(t, next)
	wantNewer(t, "a snapshot", old.Restore(bytes.NewReader(snapshot)), 2, 1)
	wantNewer(t, "a difference", old.RestoreDiff(bytes.NewReader(snapshot), nil), 2, 1)
	if digests(t, old) != before {
		t.Error("a snapshot that was refused has changed the state")
	}
	_, err = openKnowing(t, newStore, &tally{}, 1)
	wantNewer(t, "a state", err, 2, 1)
	raised, err := openKnowing(t, store, &tally{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := raised.Restore(bytes.NewReader(snapshot)); err != nil || raised.Level() != 2 || digests(t, raised) != digests(t, next) {
		t.Errorf("restored at level %d, %v", raised.Level(), err)
	}
	if raised, err = openKnowing(t, store, &tally{}, 2); err != nil || raised.Level() != 2 {
		t.Errorf("after a restart at level %d, %v", raised.Level(), err)
	}
}

// A level that was altered on its way is damage, not news.
func TestAlteredLevelOfASnapshot(t *testing.T) {
	r, _ := newReplica(t)
	apply(t, r, entryAt(2, 1, "a"))
	snapshot := snapshotOf(t, r)
	for bit := range 8 {
		bad := bytes.Clone(snapshot)
		bad[len(magic)] ^= 1 << bit
		fresh, _ := newReplica(t)
		if err := fresh.Restore(bytes.NewReader(bad)); !errors.Is(err, ErrSnapshot) {
			t.Errorf("bit %d: error %v", bit, err)
		}
	}
	for _, bad := range [][]byte{{}, {0}, {1, 1}, {0x80}} {
		store := kv.NewMemory()
		open(t, store)
		b := store.Batch()
		if err := errors.Join(b.Set(levelKey, bad), b.Commit()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(store, &tally{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("level %x: error %v", bad, err)
		}
	}
}

// A stream of another version is told apart from damage, and the level of one can be read whatever the program knows.
func TestSnapshotOfAnotherVersion(t *testing.T) {
	r, err := openKnowing(t, kv.NewMemory(), &tally{}, 5)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, r, entryAt(2, 5, "a"))
	good := snapshotOf(t, r)
	if level, err := SnapshotLevel(bytes.NewReader(good)); err != nil || level != 5 {
		t.Errorf("level %d, %v", level, err)
	}
	for what, c := range map[string]struct {
		begins  string
		version int // 0: it is damaged, or nothing at all
	}{
		"before":      {"lockstep snapshot 3\n", 3},
		"later":       {"lockstep snapshot 5\n", 5},
		"no digit":    {"lockstep snapshot x\n", 0},
		"no version":  {"lockstep snapshot \n\n", 0},
		"no line":     {"lockstep snapshot 3 ", 0},
		"not its own": {"LOCKSTEP snapshot 3\n", 0},
	} {
		bad := append([]byte(c.begins), good[len(magic):]...)
		fresh, _ := newReplica(t)
		_, err := SnapshotLevel(bytes.NewReader(bad))
		for _, err := range []error{err, fresh.Restore(bytes.NewReader(bad))} {
			var other *SnapshotVersionError
			if is := errors.As(err, &other); !errors.Is(err, ErrSnapshot) || is != (c.version != 0) || is && other.Version != c.version {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// A group at the first level has the digest that it had before there were levels: programs on both sides of that compare.
func TestEngineDigestOfTheFirstLevel(t *testing.T) {
	r, _ := newReplica(t)
	apply(t, r, entryAt(2, 1, "a"))
	if want := machine.Digest(blake3.Sum256([]byte{0, 0})); r.EngineDigest() != want { // time, evicted
		t.Errorf("digest %x, want %x", r.EngineDigest(), want)
	}
}
