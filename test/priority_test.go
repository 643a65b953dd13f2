package test

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

var congestion = flag.String("test.congestion", "", "congestion control of the nodes in TestWritesBesideBulk; empty: the machine's")

// TestWritesBesideBulk: a write takes as long as before while a new member is fed all contents over a network that is the
// bottleneck.
func TestWritesBesideBulk(t *testing.T) {
	const megabits, queue = 100, 50 * time.Millisecond
	network, err := farm.NewNetwork(4)
	if err != nil {
		t.Skipf("no networks on this machine: %v", err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := 1; i <= 4; i++ {
		if err := network.Limit(i, megabits, queue, *congestion); err != nil {
			t.Skipf("no slow network on this machine: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 80*time.Second)
	t.Cleanup(cancel)
	f := &farm.Farm{Binary: binary, Dir: t.TempDir()}
	closing(t, f)
	for i := 1; i <= 4; i++ {
		if _, err := f.AddAt(ctx, farm.Place{Listen: network.Address(i) + ":7420", Under: network.Under(i)}); err != nil {
			t.Fatal(err)
		}
	}
	three, fresh := f.Nodes[:3], f.Nodes[3]
	if err := f.Share(ctx, group, three...); err != nil {
		t.Fatal(err)
	}
	voters(t, ctx, three[0], three...)
	var size int64
	for i := range 12 {
		b := make([]byte, 2<<20)
		rand.Read(b)
		size += int64(len(b))
		if err := os.WriteFile(filepath.Join(three[0].Tree, fmt.Sprintf("bulk%02d", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reachedBy(t, ctx, three[0], api.DirWaitFor{Mode: api.WaitAll, Timeout: "40s"})
	leader := feeder(t, ctx, f)
	if _, err := leader.Client.GroupTransfer(ctx, group, api.GroupTransfer{Node: leader.Name}); err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc(slices.Clone(three), func(n *farm.Node) bool { return n == leader })
	alone := latencies(t, ctx, rest[0], rest[1], "alone", func() bool { return false }, 2*time.Second)
	if _, err := three[0].Client.DirBind(ctx, group, api.DirBind{Node: fresh.Name, Path: fresh.Tree}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	arrived := func() bool {
		var have int64
		for i := range 12 {
			if in, err := os.Stat(filepath.Join(fresh.Tree, fmt.Sprintf("bulk%02d", i))); err == nil {
				have += in.Size()
			}
		}
		return have == size
	}
	beside := latencies(t, ctx, rest[0], rest[1], "beside", arrived, 30*time.Second)
	took := time.Since(began)
	t.Logf("%d MB in %s", size>>20, took)
	for _, l := range [][]time.Duration{alone, beside} {
		if len(l) < 20 {
			t.Fatalf("%d writes in %s say nothing", len(l), took)
		}
		t.Logf("%d writes: p50 %s, p90 %s, longest %s", len(l), l[len(l)/2], l[len(l)*9/10], l[len(l)-1])
	}
	// A write's way has three packets that would each wait for up to the queue.
	if before, now := alone[len(alone)/2], beside[len(beside)/2]; now > before*22/10 {
		t.Errorf("half of the writes took more than %s, and %s without the transfer beside them", now, before)
	}
}

// feeder is the node that a new member asks for contents first.
func feeder(t *testing.T, ctx context.Context, f *farm.Farm) *farm.Node {
	t.Helper()
	g, err := f.Nodes[0].Client.Group(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes {
		if n.Name == g.Replicas[0].Node {
			return n
		}
	}
	t.Fatalf("no node %s", g.Replicas[0].Node)
	return nil
}

// latencies has one node's writes appear on another, one after the other, until it is over or enough time has passed, and
// returns how long each took, sorted.
func latencies(t *testing.T, ctx context.Context, from, to *farm.Node, what string, over func() bool, most time.Duration) (all []time.Duration) {
	t.Helper()
	for end := time.Now().Add(most); time.Now().Before(end) && !over(); {
		began := time.Now()
		name := fmt.Sprintf("%s-%05d", what, len(all))
		if err := os.WriteFile(filepath.Join(from.Tree, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		err := farm.Poll(ctx, time.Millisecond, func() error {
			_, err := os.Stat(filepath.Join(to.Tree, name))
			return err
		})
		if err != nil {
			t.Fatalf("%s does not appear on %s: %v", name, to.Name, err)
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return all
}
