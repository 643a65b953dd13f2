package sim

import (
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
}

func (s *script) machine(*host) machine.Machine { return s.of() }
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
	s := &script{of: func() machine.Machine { return swapper{} }}
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
	s := &script{diff: manifestDiffer{}, of: func() machine.Machine { return manifest.New(manifest.Config{Policy: policy}) }}
	for range 60 {
		b := manifest.Batch{Author: "node-1"}
		for range 1 + w.dice.work.IntN(4) {
			b.Changes = append(b.Changes, f.change(nil))
		}
		s.payloads = append(s.payloads, manifest.EncodeBatch(b))
	}
	return s
}

// play runs s on a cluster of the given shape and returns the digest of the records that a client can see.
func play(t *testing.T, seed uint64, s *script) string {
	t.Helper()
	w := newWorld(seed)
	w.shape.ruins = false
	w.shape.groups, w.shape.clients, w.shape.think = 1, 1, 50*milli
	w.shape.limits = replica.DefaultLimits() // a session that expires would leave the script
	w.shape.drop = min(w.shape.drop, 0.01)
	var faults []fault
	for _, f := range w.shape.faults {
		if f != diskRot {
			faults = append(faults, f)
		}
	}
	w.shape.faults, w.shape.weights = faults, w.shape.weights[:len(faults)]
	w.script = s
	if _, err := run(w); err != nil {
		t.Fatalf("%v\nshape %+v", err, w.shape)
	}
	gr := w.groups[0]
	if n := s.next_; n != len(s.payloads) {
		t.Fatalf("seed %d: only %d of %d operations were asked for", seed, n, len(s.payloads))
	}
	return contents(t, gr.member(gr.members()[0]).rep)
}

// contents are the machine's records without indexes and times, which digests hold as well: those depend on how
// operations were packed into entries, on how many leaders there were and on when a write was repeated.
func contents(t *testing.T, rep *replica.Replica) string {
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
	err := manifest.Walk(view, "", "", func(path string, n manifest.Node) error {
		n.Version = 0
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

// TestMetamorphic: one script on clusters of every size, with every batch, snapshot, retention and feed setting, under
// every fault: the outcome is the same.
func TestMetamorphic(t *testing.T) {
	for name, make := range map[string]func(uint64) *script{"registers": registerScript, "files": fileScript} {
		for what := range uint64(2) {
			var want string
			for seed := range uint64(12) {
				got := play(t, 1000+seed, make(what))
				if seed == 0 {
					want = got
				} else if got != want {
					t.Errorf("%s %d: the cluster of seed %d ended with\n%s\nthat of seed 1000 with\n%s", name, what, 1000+seed, got, want)
				}
			}
		}
	}
}
