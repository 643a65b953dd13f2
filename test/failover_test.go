package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// apart runs nodes in network namespaces that share their trees.
func apart(t *testing.T, size int) (context.Context, *farm.Farm, *farm.Network) {
	t.Helper()
	network, err := farm.NewNetwork(size)
	if err != nil {
		t.Skipf("no partitions on this machine: %v", err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	f := &farm.Farm{Binary: binary, Dir: t.TempDir()}
	closing(t, f)
	for i := 1; i <= size; i++ {
		place := farm.Place{Listen: network.Address(i) + ":7420", Under: network.Under(i)}
		if _, err := f.AddAt(ctx, place); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Share(ctx, group, f.Nodes...); err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	voters(t, ctx, f.Nodes[0], f.Nodes...)
	return ctx, f, network
}

// flow has one node's writes appear on another, one after the other, until it is stopped, and remembers the longest
// time that one took and every term in which the group was led.
type flow struct {
	from, to *farm.Node
	count    int
	longest  time.Duration
	terms    map[uint64]string // who led it
}

func (x *flow) run(ctx context.Context, length time.Duration) error {
	x.terms = map[uint64]string{}
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { x.watch(ctx, over) })
	defer watching.Wait()
	defer close(over)
	for end := time.Now().Add(length); time.Now().Before(end); x.count++ {
		began := time.Now()
		name := fmt.Sprintf("flow-%s-%05d", x.from.Name, x.count)
		if err := os.WriteFile(filepath.Join(x.from.Tree, name), []byte(name), 0o644); err != nil {
			return err
		}
		patience, done := context.WithTimeout(ctx, 30*time.Second)
		err := farm.Poll(patience, 2*time.Millisecond, func() error {
			_, err := os.Stat(filepath.Join(x.to.Tree, name))
			return err
		})
		if done(); err != nil {
			return fmt.Errorf("%s does not appear on %s: %w", name, x.to.Name, err)
		}
		x.longest = max(x.longest, time.Since(began))
	}
	return nil
}

// watch looks at who leads; a look takes a second while a member does not answer.
func (x *flow) watch(ctx context.Context, over <-chan struct{}) {
	for {
		if g, err := x.to.Client.Group(ctx, group); err == nil && g.Leader != "" {
			x.terms[g.Term] = g.Leader
		}
		select {
		case <-over:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stable checks what a disturbance of one node may cost the others.
func (x *flow) stable(t *testing.T, what string, before, after api.Group, changes, terms int, gap time.Duration) {
	t.Helper()
	t.Logf("%s: %d writes, the longest took %s, led by %v, term %d after %d", what, x.count, x.longest, x.terms, after.Term, before.Term)
	if x.longest > gap {
		t.Errorf("%s: a write took %s, at most %s is fine", what, x.longest, gap)
	}
	x.terms[after.Term] = after.Leader
	led := len(x.terms)
	if _, was := x.terms[before.Term]; was {
		led--
	}
	if led > changes {
		t.Errorf("%s: %d changes of the leader, at most %d are fine: %v", what, led, changes, x.terms)
	}
	if after.Term > before.Term+uint64(terms) {
		t.Errorf("%s: %d terms went by, at most %d are fine", what, after.Term-before.Term, terms)
	}
}

// cutOff is a partition in one direction between a node and all others.
func cutOff(t *testing.T, network *farm.Network, size, node int, hears bool) {
	t.Helper()
	for other := 1; other <= size; other++ {
		from, to := node, other
		if !hears {
			from, to = other, node
		}
		if other == node {
			continue
		}
		if err := network.Cut(from, to); err != nil {
			t.Fatal(err)
		}
	}
}

// oneWayGap is what losing a leader in one direction may cost a write: an election, and on a machine that others use some
// time to get to it. Waiting for the transport to give the old leader up takes longer.
const oneWayGap = 2500 * time.Millisecond

// TestOneWayPartitions: a leader that hears and is not heard, one that is heard and does not hear, and the same for a
// follower. The others write on after at most one change of the leader, and nobody calls election after election.
func TestOneWayPartitions(t *testing.T) {
	const size = 3
	ctx, f, network := apart(t, size)
	for _, c := range []struct {
		what   string
		leader bool // it is the leader that is cut off
		hears  bool
	}{
		{"a leader that is not heard", true, true},
		{"a leader that does not hear", true, false},
		{"a follower that is not heard", false, true},
		{"a follower that does not hear", false, false},
	} {
		leader, err := f.Leader(ctx, group)
		if err != nil {
			t.Fatal(err)
		}
		victim := leader
		if !c.leader {
			victim = others(f, leader)[0]
		}
		rest := others(f, victim)
		before := groupAt(t, ctx, leader)
		cutOff(t, network, size, place(f, victim), c.hears)
		x := &flow{from: rest[0], to: rest[1]}
		err = x.run(ctx, 3*time.Second)
		healed := network.Heal()
		if err != nil || healed != nil {
			t.Fatalf("%s: %v %v", c.what, err, healed)
		}
		settle(t, ctx, f)
		after := groupAt(t, ctx, rest[0])
		changes := 0
		if c.leader {
			changes = 1
		}
		x.stable(t, c.what, before, after, changes, 2+2*changes, oneWayGap)
	}
}

func place(f *farm.Farm, n *farm.Node) int {
	for i, m := range f.Nodes {
		if m == n {
			return i + 1
		}
	}
	return 0
}

// TestFlappingNode: a node's network goes and comes, again and again. What it costs the others is at most the leader that
// it was.
func TestFlappingNode(t *testing.T) {
	const size = 3
	ctx, f, network := apart(t, size)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	rest := others(f, leader)
	before := groupAt(t, ctx, rest[0])
	over := make(chan error, 1)
	x := &flow{from: rest[0], to: rest[1]}
	go func() { over <- x.run(ctx, 8*time.Second) }()
	// Long enough for an election each time, and shorter than one.
	for i, pause := 0, []time.Duration{2500 * time.Millisecond, 300 * time.Millisecond, 900 * time.Millisecond}; err == nil; i++ {
		cutOff(t, network, size, place(f, leader), true)
		cutOff(t, network, size, place(f, leader), false)
		select {
		case err = <-over:
			over <- err
			i = -1
		case <-time.After(pause[i%len(pause)]):
		}
		if healed := network.Heal(); healed != nil {
			t.Fatal(healed)
		}
		if i < 0 {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause[(i+1)%len(pause)] / 2):
		}
	}
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	x.stable(t, "a flapping node", before, groupAt(t, ctx, rest[0]), 2, 4, 10*time.Second)
}
