package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// script is a workload that asks for the same operations in the same order, whatever the cluster is like.
type script struct {
	of       func() machine.Machine
	diff     differ
	payloads [][]byte
	next_    int
	ordinals map[uint64]int // by index: which operation was executed there
}

// listener notes where operations are executed.
type listener struct {
	machine.Machine
	s *script
}

func (l listener) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	if _, known := l.s.ordinals[cmd.Index]; !known {
		i := slices.IndexFunc(l.s.payloads, func(p []byte) bool { return bytes.Equal(p, cmd.Payload) })
		l.s.ordinals[cmd.Index] = i + 1
	}
	return l.Machine.Apply(tx, cmd)
}

func (s *script) machine(*host) machine.Machine { return listener{s.of(), s} }
func (s *script) differ() differ                { return s.diff }
func (s *script) check(*member)                 {}
func (s *script) turn()                         {}

// next is asked by one client only, so the order is that of the script; when it is over, it reads.
func (s *script) next(*client) request {
	if s.next_ == len(s.payloads) {
		return request{read: func(kv.Reader) {}}
	}
	p := s.payloads[s.next_]
	s.next_++
	return request{payload: p, ack: core.AckQuorum, answered: func(core.Answer, []byte, int) {}}
}

// registerScript swaps registers.
func registerScript(seed uint64) *script {
	s := &script{of: func() machine.Machine { return swapper{} }, ordinals: map[uint64]int{}}
	r := newWorld(seed).dice.work
	for v := range uint64(60) {
		p := binary.BigEndian.AppendUint64([]byte{byte(r.IntN(registerCount))}, v+1)
		s.payloads = append(s.payloads, append(p, make([]byte, r.IntN(300))...))
	}
	return s
}

// fileScript changes a tree, in ways that often contradict what is there.
func fileScript(seed uint64) *script {
	w := newWorld(seed)
	w.shape.groups = 1
	f := newFiles(&group{w: w})
	policy, err := manifest.ParsePolicy("first")
	must(err, "parse policy")
	s := &script{diff: manifestDiffer{}, ordinals: map[uint64]int{}, of: func() machine.Machine { return manifest.New(manifest.Config{Policy: policy}) }}
	for range 60 {
		b := manifest.Batch{Author: "node-1"}
		for range 1 + w.dice.work.IntN(4) {
			b.Changes = append(b.Changes, f.change(nil))
		}
		s.payloads = append(s.payloads, manifest.EncodeBatch(b))
	}
	return s
}

// outcome is what a script came to on one cluster.
type outcome struct {
	contents string // see contents
	packing  string // at which indexes its operations were executed, and what was behind them
	machine  machine.Digest
	sessions machine.Digest
}

// play runs s on a cluster of the given shape, calm or under its faults, with a topology of its own.
func play(t *testing.T, seed uint64, s *script, calm bool) outcome {
	t.Helper()
	w := newWorld(seed)
	w.shape.ruins, w.shape.mixed, w.shape.still = false, false, true
	w.shape.groups, w.shape.clients, w.shape.think = 1, 1, 50*milli
	w.shape.observers, w.shape.topology = 2+int(seed%5), topologies[seed%uint64(len(topologies))]
	w.shape.limits = replica.DefaultLimits() // a session that expires would leave the script
	w.shape.drop = min(w.shape.drop, 0.01)
	var faults []fault
	for _, f := range w.shape.faults {
		if f != diskRot && (!calm || f == rewire || f == wipeObserver) {
			faults = append(faults, f)
		}
	}
	w.shape.faults, w.shape.weights = faults, w.shape.weights[:len(faults)]
	if calm {
		w.shape.drop, w.shape.driven = 0, false
	}
	w.script = s
	if _, err := run(w); err != nil {
		t.Fatalf("%v\nshape %+v", err, w.shape)
	}
	gr := w.groups[0]
	if n := s.next_; n != len(s.payloads) {
		t.Fatalf("seed %d: only %d of %d operations were asked for", seed, n, len(s.payloads))
	}
	rep := gr.member(gr.members()[0]).rep
	d, err := rep.Digest()
	if err != nil {
		t.Fatal(err)
	}
	out := outcome{contents: contents(t, rep, s), machine: d, sessions: rep.EngineDigest(), packing: fmt.Sprint(rep.Terms(), s.ordinals)}
	gr.eachObserver(func(o *observer) {
		if got := contents(t, o.rep, s); got != out.contents {
			t.Errorf("seed %d: %s ended with\n%s\nthe members with\n%s", seed, o, got, out.contents)
		}
	})
	return out
}

// contents are the machine's records, with operations in the place of the indexes at which they were executed.
//
// Digests hold the indexes themselves. Which index an operation gets depends on how many leaders there were, on changes of
// membership and on writes that were repeated, so between two clusters that differ in that digests say nothing; where
// they do not differ, digests are compared as they are (TestMetamorphic). The one thing that contents leave out is the name
// of a conflict's copy: it may have an index in it. All clocks show the same time, for it has that, too.
func contents(t *testing.T, rep *replica.Replica, s *script) string {
	t.Helper()
	view := rep.View()
	defer view.Close()
	var out []string
	for r := range byte(registerCount) {
		v, _, err := view.Get(registerKey(r))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("register %d %x", r, v))
	}
	for i := range s.payloads {
		if at, found, err := view.Get(valueKey(uint64(i + 1))); err != nil {
			t.Fatal(err)
		} else if found {
			out = append(out, fmt.Sprintf("value %d by operation %d", i+1, s.ordinals[number(at)]))
		}
	}
	err := manifest.Walk(view, "", "", func(path string, n manifest.Node) error {
		if by, ok := s.ordinals[n.Version]; ok || n.Version > 0 {
			n.Version = uint64(by)
		}
		out = append(out, fmt.Sprintf("%s %+v", copyName.ReplaceAllString(path, ".conflict"), n))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// copyName is what a conflict's copy has in its name: author, time and, if need be, index.
var copyName = regexp.MustCompile(`\.conflict-node-1-[0-9-]+`)

// TestMetamorphic: one script on clusters of every size and topology, with every batch, snapshot, retention and feed setting,
// under every fault: the outcome is the same, by which operation it came about included. Digests, of the machine and of the
// sessions, are compared among those that executed every operation at the same index, under leaders of the same terms: of
// calm clusters many do.
func TestMetamorphic(t *testing.T) {
	for name, make := range map[string]func(uint64) *script{"registers": registerScript, "files": fileScript} {
		for what := range uint64(2) {
			var first outcome
			packed, compared := map[string]outcome{}, 0
			for seed := range uint64(20) {
				got := play(t, 1000+seed, make(what), seed >= 8)
				if seed == 0 {
					first = got
				} else if got.contents != first.contents {
					t.Errorf("%s %d: the cluster of seed %d ended with\n%s\nthat of seed 1000 with\n%s", name, what, 1000+seed, got.contents, first.contents)
				}
				like, found := packed[got.packing]
				if !found {
					packed[got.packing] = got
					continue
				}
				if compared++; got.machine != like.machine || got.sessions != like.sessions {
					t.Errorf("%s %d: the cluster of seed %d ended with other digests than one like it: of the machine %v, of sessions %v",
						name, what, 1000+seed, got.machine != like.machine, got.sessions != like.sessions)
				}
			}
			t.Logf("%s %d: %d digests compared", name, what, compared)
			if compared < 4 {
				t.Errorf("%s %d: only %d digests could be compared", name, what, compared)
			}
		}
	}
}
