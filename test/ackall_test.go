package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// TestAckAllWithOneDown: with ack all, what is written while a member is down waits until it has left the in-sync set, says
// so, and goes on: contents that travel with the log and contents that are staged alike. The member has all of it once it is
// back.
func TestAckAllWithOneDown(t *testing.T) {
	ctx, f := start(t, 3)
	settle(t, ctx, f)
	n1, n2, n3 := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	const bound = 3 * time.Second
	if _, err := n1.Client.GroupSet(ctx, group, api.GroupSet{Ack: "all", InSyncAfter: bound.String()}); err != nil {
		t.Fatal(err)
	}
	inSync := func(want ...string) {
		t.Helper()
		if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
			g, err := n1.Client.Group(ctx, group)
			if err == nil && !slices.Equal(slices.Sorted(slices.Values(g.InSync.Nodes)), want) {
				err = fmt.Errorf("in the set: %v", g.InSync.Nodes)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	inSync("n1", "n2", "n3")
	if err := n3.Kill(); err != nil {
		t.Fatal(err)
	}
	large := strings.Repeat("0123456789abcdef", 100<<10/16)
	began := time.Now()
	write(t, n1, "large", large) // alone: behind others that wait it would be staged when nobody is waited for any more
	if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		st, err := n1.Client.DirStatus(ctx, group)
		if err != nil {
			return err
		}
		for _, node := range st.Nodes {
			for _, p := range node.Problems {
				if node.Node == "n1" && strings.Contains(p.What, "n3 (") && strings.Contains(p.Hint, "group set "+group+" --ack quorum") {
					return nil
				}
			}
		}
		return fmt.Errorf("the status does not say who is waited for: %+v", st.Nodes)
	}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		write(t, n1, fmt.Sprintf("small/%d", i), fmt.Sprint("content of ", i))
	}
	everything := func(n *farm.Node) {
		t.Helper()
		appears(t, ctx, n, "large", large)
		for i := range 200 {
			appears(t, ctx, n, fmt.Sprintf("small/%d", i), fmt.Sprint("content of ", i))
		}
	}
	everything(n2)
	t.Logf("everything arrived %v after it was written", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > bound+4*time.Second {
		t.Errorf("it took %v although the member may be behind for %v only", took, bound)
	}
	inSync("n1", "n2")
	if err := f.Run(n3, ""); err != nil {
		t.Fatal(err)
	}
	everything(n3)
	inSync("n1", "n2", "n3")
	settle(t, ctx, f)
}
