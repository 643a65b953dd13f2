package control_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
	"github.com/lockstep-sync/lockstep/internal/machine/machinetest"
)

func TestConformance(t *testing.T) {
	machinetest.Run(t, machinetest.Suite{
		New:  func() machine.Machine { return control.New(func(*control.State) {}) },
		Next: nextCommand,
	})
}

// nextCommand makes a command that often fits the state and sometimes does not.
func nextCommand(rng *rand.Rand, r kv.Reader, index uint64) []byte {
	s, err := control.Load(r, index)
	if err != nil {
		panic(err)
	}
	c := control.Command{By: "test"}
	node := func() string { return fmt.Sprintf("n%d", rng.IntN(6)) }
	group := func() string { return fmt.Sprintf("g%d", rng.IntN(5)) }
	dir := func() string { return fmt.Sprintf("/srv/%d%s", rng.IntN(8), []string{"", "/sub", "/"}[rng.IntN(3)]) }
	if s.Cluster.ID == "" && rng.IntN(3) > 0 {
		c.Init = &control.Init{Cluster: control.Cluster{ID: "c1", CACert: []byte("cert")}, Node: control.Node{Name: "n0"}}
		return encode(c)
	}
	token := fmt.Sprintf("t%d", rng.IntN(5))
	switch rng.IntN(11) {
	case 0, 1:
		expires := time.Unix(0, 1_700_000_000_000_000_000).Add(time.Duration(rng.IntN(100*60)) * time.Minute)
		c.AddToken = &control.Token{ID: token, SecretHash: "h", Expires: expires}
	case 2:
		c.RevokeToken = &control.RevokeToken{ID: token}
	case 3, 4:
		c.Join = &control.Join{Token: token, Name: node(), Address: "h:1", Replace: rng.IntN(3) == 0}
	case 5:
		c.SetAddress = &control.SetAddress{Node: rng.Uint64N(8), Address: fmt.Sprintf("h:%d", rng.IntN(3))}
	case 6:
		c.CreateGroup = &control.CreateGroup{Name: group(), Paths: map[string]string{node(): dir(), node(): dir()}}
	case 7:
		c.Bind = &control.Bind{Group: group(), Node: node(), Path: dir()}
	case 8:
		c.Unbind = &control.Unbind{Group: group(), Node: node()}
	case 9:
		c.SetGroup = &control.SetGroup{Group: group(), Topology: []string{"star", "chain", "tree:2", "auto", "ring", ""}[rng.IntN(6)],
			Ack: []string{"", "all", "local", "some"}[rng.IntN(4)], InSyncAfter: time.Duration(rng.IntN(3)) * time.Second}
	case 10:
		c.SetInSync = &control.SetInSync{Group: rng.Uint64N(5), Term: rng.Uint64N(4), Version: rng.Uint64N(4), Why: "test",
			Replicas: []uint64{1, 2, 3}[rng.IntN(3):]}
	}
	return encode(c)
}

func encode(c control.Command) []byte {
	b, err := c.Encode()
	if err != nil {
		panic(err)
	}
	return b
}

// The trail keeps the newest thousand, one record for every change even if many share an entry.
func TestAuditIsBounded(t *testing.T) {
	f := newFixture(t) // two records
	b := f.store.Batch()
	for seq := uint64(3); seq <= 990; seq++ {
		rec, err := json.Marshal(control.Audit{Seq: seq, What: "filler"})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Set(binary.BigEndian.AppendUint64([]byte("a"), seq), rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if i%7 == 0 {
			f.index++
		}
		f.must(control.Command{SetAddress: &control.SetAddress{Node: 1, Address: fmt.Sprintf("h:%d", i)}})
	}
	a := f.state().Audit
	if len(a) != 1000 || a[0].Seq != 21 || a[999].Seq != 1020 {
		t.Fatalf("%d records, from %d to %d", len(a), a[0].Seq, a[len(a)-1].Seq)
	}
	for i, rec := range a[970:] {
		if want := fmt.Sprintf("node n1 is at h:%d, version ", i); rec.What != want {
			t.Fatalf("record %d is %q, want %q", rec.Seq, rec.What, want)
		}
	}
}

// The digest covers values, not only which keys there are.
func TestDigestCoversValues(t *testing.T) {
	digests := map[string]bool{}
	for _, value := range []string{"", "a", "b", "ab"} {
		f := newFixture(t)
		b := f.store.Batch()
		if err := b.Set([]byte("z"), []byte(value)); err != nil {
			t.Fatal(err)
		}
		d, err := f.m.Digest(b)
		if err != nil {
			t.Fatal(err)
		}
		b.Discard()
		digests[d.String()] = true
	}
	if len(digests) != 4 {
		t.Fatalf("4 states have %d digests", len(digests))
	}
}

// failingDelete is a disk on which nothing can be deleted.
type failingDelete struct{ kv.Tx }

var errDelete = errors.New("planted")

func (failingDelete) Delete([]byte) error { return errDelete }

// Old tokens make room; if that fails, storage failed, and the command has no result.
func TestFailingDeleteIsAnError(t *testing.T) {
	f := newFixture(t)
	f.now = f.now.Add(48 * time.Hour)
	b := f.store.Batch()
	defer b.Discard()
	add := control.Command{AddToken: &control.Token{ID: "t2", Expires: f.now.Add(time.Hour)}}
	cmd := machine.Command{Index: 9, Time: f.now.UnixNano(), Payload: encode(add)}
	if _, err := f.m.Apply(failingDelete{b}, cmd); !errors.Is(err, errDelete) {
		t.Fatalf("error %v", err)
	}
}

// Subscribers see a state once its batch has committed, not before, and none for what changed nothing.
func TestPublishesAfterCommit(t *testing.T) {
	f := newFixture(t)
	f.published = nil
	b := f.store.Batch()
	for _, addr := range []string{"h:5", "h:6"} {
		if _, err := f.m.Apply(b, machine.Command{Index: 50, Payload: encode(control.Command{SetAddress: &control.SetAddress{Node: 1, Address: addr}})}); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.published) != 0 {
		t.Fatal("published before the commit")
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	f.m.Committed(50)
	if len(f.published) != 1 || f.published[0].Nodes[0].Address != "h:6" {
		t.Fatalf("published %d states", len(f.published))
	}
	f.m.Committed(51)
	f.index = 60
	f.must(control.Command{SetAddress: &control.SetAddress{Node: 1, Address: "h:6"}})
	f.refused(control.Command{Unbind: &control.Unbind{Group: "none", Node: "n1"}}, "not_found")
	if len(f.published) != 1 {
		t.Fatalf("%d states published for nothing", len(f.published)-1)
	}
	if err := f.m.Restored(f.store, 61); err != nil {
		t.Fatal(err)
	}
	if len(f.published) != 2 || f.published[1].Index != 61 {
		t.Fatal("nothing published after a restore")
	}
}

func FuzzApply(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	empty := kv.NewMemory()
	for range 30 {
		f.Add(nextCommand(rng, empty, 1))
	}
	f.Add([]byte(`{"join":{"token":"t","name":"x"}}`))
	f.Add([]byte(`{"create_group":{"name":"g","paths":{"n1":"/a"}}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, x := range []*fixture{newFixture(t), bareFixture(t)} {
			b := x.store.Batch()
			res, err := x.m.Apply(b, machine.Command{Index: 9, Time: 9e18, Payload: payload})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			r, err := control.DecodeResult(res)
			if err != nil {
				t.Fatal(err)
			}
			if r.Error != nil && (r.Error.Why == "" || r.Error.Code == "") {
				t.Fatalf("refused without a reason: %s", res)
			}
			s, err := control.Load(x.store, 9)
			if err != nil {
				t.Fatal(err)
			}
			checkState(t, s)
		}
	})
}

// checkState is what holds whatever the commands were.
func checkState(t *testing.T, s *control.State) {
	t.Helper()
	names := map[string]bool{}
	for _, n := range s.Nodes {
		if !n.Removed && names[n.Name] {
			t.Fatalf("two nodes are named %q", n.Name)
		}
		names[n.Name] = !n.Removed || names[n.Name]
	}
	for _, g := range s.Groups {
		seen := map[uint64]bool{}
		for _, m := range g.Members {
			if m.Replica == 0 || seen[m.Replica] || m.Replica >= g.NextReplica {
				t.Fatalf("group %s: replica ids %+v, next %d", g.Name, g.Members, g.NextReplica)
			}
			seen[m.Replica] = true
			if n, ok := s.Node(m.Node); !ok || n.Removed {
				t.Fatalf("group %s: member on node %d", g.Name, m.Node)
			}
		}
		if len(g.Voters()) == 0 || len(g.Voters()) > control.MaxVoters {
			t.Fatalf("group %s has %d voters", g.Name, len(g.Voters()))
		}
	}
}

// A state that a newer version wrote keeps the keys that this one does not know.
func TestUnknownKeysAreKept(t *testing.T) {
	f := newFixture(t)
	b := f.store.Batch()
	if err := b.Set([]byte("x new"), []byte("value")); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	f.must(control.Command{SetAddress: &control.SetAddress{Node: 1, Address: "h:9"}})
	if v, _, _ := f.store.Get([]byte("x new")); !bytes.Equal(v, []byte("value")) {
		t.Fatalf("unknown key holds %q", v)
	}
}

// fixture is a machine on a store of its own.
type fixture struct {
	t         *testing.T
	store     *kv.Memory
	m         *control.Machine
	index     uint64
	now       time.Time
	published []*control.State
}

func bareFixture(t *testing.T) *fixture {
	f := &fixture{t: t, store: kv.NewMemory(), index: 1, now: time.Unix(1_800_000_000, 0)}
	f.m = control.New(func(s *control.State) { f.published = append(f.published, s) })
	return f
}

// newFixture is a cluster of one node, n1, with a token t1 that is good for an hour.
func newFixture(t *testing.T) *fixture {
	f := bareFixture(t)
	f.must(control.Command{Init: &control.Init{Cluster: control.Cluster{ID: "c1"}, Node: control.Node{Name: "n1", Address: "h1:1"}, History: [16]byte{1}}})
	f.must(control.Command{AddToken: &control.Token{ID: "t1", Expires: f.now.Add(time.Hour)}})
	return f
}

func (f *fixture) apply(c control.Command) control.Result {
	f.t.Helper()
	b := f.store.Batch()
	out, err := f.m.Apply(b, machine.Command{Index: f.index, Time: f.now.UnixNano(), Payload: encode(c)})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		f.t.Fatal(err)
	}
	f.m.Committed(f.index)
	r, err := control.DecodeResult(out)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) must(c control.Command) control.Result {
	f.t.Helper()
	r := f.apply(c)
	if r.Error != nil {
		f.t.Fatalf("%s: refused: %+v", encode(c), r.Error)
	}
	return r
}

func (f *fixture) refused(c control.Command, code string) control.Result {
	f.t.Helper()
	before, _ := json.Marshal(f.state())
	r := f.apply(c)
	if r.Error == nil {
		f.t.Fatalf("%s: accepted", encode(c))
	}
	if string(r.Error.Code) != code || r.Error.Why == "" || r.Error.Op == "" || r.Error.Hint == "" {
		f.t.Fatalf("%s: %+v, want code %s and a reason with a way out", encode(c), r.Error, code)
	}
	if after, _ := json.Marshal(f.state()); !bytes.Equal(before, after) {
		f.t.Fatalf("%s: refused, but the state changed", encode(c))
	}
	return r
}

func (f *fixture) state() *control.State {
	f.t.Helper()
	s, err := control.Load(f.store, f.index)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) join(names ...string) {
	f.t.Helper()
	for _, n := range names {
		f.must(control.Command{Join: &control.Join{Token: "t1", Name: n, Address: n + ":1"}})
	}
}
