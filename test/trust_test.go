package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// TestAcceptedWritesThatAreLostAreTold: a leader that nobody follows any more accepts writes; it dies, the others elect
// another, and say LOST to each token; when it comes back it counts what it had promised.
func TestAcceptedWritesThatAreLostAreTold(t *testing.T) {
	ctx, f := start(t, 3)
	write(t, f.Nodes[0], "a", "1")
	settle(t, ctx, f)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := leader.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "local"})
	if err != nil || kept.Answer != api.AnswerAccepted || kept.Token == "" {
		t.Fatalf("probe: %+v, %v", kept, err)
	}
	fateOf := func(n *farm.Node, token, want string) {
		t.Helper()
		if got, err := n.Client.GroupToken(ctx, group, token); err != nil || got.Fate != want || got.Why == "" {
			t.Errorf("%s says %+v, %v; want %s", n.Name, got, err, want)
		}
	}
	for _, n := range f.Nodes {
		fateOf(n, kept.Token, api.FateCommitted)
	}
	rest := others(f, leader)
	for _, n := range rest {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	const writes = 5
	var tokens []string
	for range writes { // it leads until its followers were silent for an election timeout
		p, err := leader.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "local"})
		if err != nil || p.Answer != api.AnswerAccepted {
			t.Fatalf("probe: %+v, %v", p, err)
		}
		tokens = append(tokens, p.Token)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, n := range rest {
		if err := f.Run(n, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range rest {
		if err := f.WaitUp(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	p, err := rest[0].Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "quorum"})
	if err != nil || p.Answer != api.AnswerCommitted {
		t.Fatalf("probe: %+v, %v", p, err)
	}
	for _, token := range tokens {
		fateOf(rest[0], token, api.FateLost)
	}
	fateOf(rest[1], kept.Token, api.FateCommitted)
	if err := f.Run(leader, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitUp(ctx, leader); err != nil {
		t.Fatal(err)
	}
	counted := func() error {
		g, err := leader.Client.Group(ctx, group)
		if err == nil && g.Losses != writes {
			err = fmt.Errorf("%d losses are counted, want %d", g.Losses, writes)
		}
		return err
	}
	if err := farm.Poll(ctx, 50*time.Millisecond, counted); err != nil {
		t.Fatal(err)
	}
	fateOf(leader, tokens[0], api.FateLost)
	if !strings.Contains(leader.Log(), "accepted writes are lost") {
		t.Error("its log says nothing of the losses")
	}
	settle(t, ctx, f)
	if err := counted(); err != nil {
		t.Errorf("counted again: %v", err)
	}
}

// TestTokensAreKeptAcrossAFork: a leader accepts writes that its followers, which are lost, never get. The group is
// recovered from its log, which commits them, and their tokens say so.
func TestTokensAreKeptAcrossAFork(t *testing.T) {
	ctx, f := start(t, 3)
	settle(t, ctx, f)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range others(f, leader) {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	p, err := leader.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "local"})
	if err != nil || p.Answer != api.AnswerAccepted {
		t.Fatalf("probe: %+v, %v", p, err)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	run(t, f, nil, "offline", "recover", "--data", leader.Data, "--yes-lose-data", leader.Name)
	if err := f.Run(leader, ""); err != nil {
		t.Fatal(err)
	}
	var done api.GroupRecovered
	if err := farm.Poll(ctx, 50*time.Millisecond, func() (err error) {
		done, err = leader.Client.GroupRecover(ctx, group, api.GroupRecover{Confirm: group})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if done.Fork >= p.Index || done.Last < p.Index {
		t.Fatalf("accepted at %d, and the fork is at %d, the end at %d", p.Index, done.Fork, done.Last)
	}
	var got api.GroupToken
	err = farm.Poll(ctx, 50*time.Millisecond, func() (err error) {
		if got, err = leader.Client.GroupToken(ctx, group, p.Token); err == nil && got.Fate == api.FateUnknown {
			err = fmt.Errorf("not decided: %s", got.Why)
		}
		return err
	})
	if err != nil || got.Fate != api.FateCommitted {
		t.Errorf("%+v, %v: what was accepted at %d is committed in the new history", got, err, p.Index)
	}
}

// TestTheInSyncSetFollowsItsMembers: a member that dies leaves the set, is not counted, and joins when it is back.
func TestTheInSyncSetFollowsItsMembers(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 3)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	rest := others(f, leader)
	gone := rest[0]
	if _, err := leader.Client.GroupSet(ctx, group, api.GroupSet{Ack: "all", InSyncAfter: "1h"}); err != nil {
		t.Fatal(err)
	}
	probe := func() api.GroupProbe {
		t.Helper()
		p, err := leader.Client.GroupProbe(ctx, group, api.GroupProbeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := probe(); p.Answer != api.AnswerCommittedAll || p.Set != 1 {
		t.Fatalf("with all of them: %+v", p)
	}
	if err := gone.Kill(); err != nil {
		t.Fatal(err)
	}
	if p := probe(); p.Answer != api.AnswerQuorumOnly || !slices.Equal(p.Missing, []string{gone.Name}) || p.Set != 0 {
		t.Fatalf("without one that still counts: %+v", p)
	}
	if _, err := leader.Client.GroupSet(ctx, group, api.GroupSet{InSyncAfter: "1s"}); err != nil {
		t.Fatal(err)
	}
	if p := probe(); p.Answer != api.AnswerCommittedAll || p.Set != 2 {
		t.Fatalf("without one that no longer counts: %+v", p)
	}
	g, err := leader.Client.Group(ctx, group)
	if err != nil || g.InSync.Version != 2 || slices.Contains(g.InSync.Nodes, gone.Name) || !strings.Contains(g.InSync.Why, gone.Name+" is down") {
		t.Fatalf("recorded: %+v, %v", g.InSync, err)
	}
	st, err := leader.Client.Status(ctx)
	if err != nil || !slices.ContainsFunc(st.Warnings, func(w api.Warning) bool { return w.Name == "in_sync_set" }) {
		t.Errorf("no warning: %+v, %v", st.Warnings, err)
	}
	if err := f.Run(gone, ""); err != nil {
		t.Fatal(err)
	}
	err = farm.Poll(ctx, 50*time.Millisecond, func() error {
		g, err := leader.Client.Group(ctx, group)
		if err == nil && (len(g.InSync.Nodes) != 3 || g.InSync.Version != 3) {
			err = fmt.Errorf("recorded: %+v", g.InSync)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = farm.Poll(ctx, 50*time.Millisecond, func() error { // the leader counts by the new version a moment later
		p := probe()
		if p.Answer != api.AnswerCommittedAll {
			return farm.Final(fmt.Errorf("with all of them again: %+v", p))
		}
		if p.Set != 3 {
			return fmt.Errorf("with all of them again: %+v", p)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDamageOfAStateIsFoundAndHealed alters a record in the state of a node that is down, as a failing disk would.
func TestDamageOfAStateIsFoundAndHealed(t *testing.T) {
	ctx, f := start(t, 3)
	for i := range 20 {
		write(t, f.Nodes[i%3], fmt.Sprintf("d%d/f%d", i%4, i), strings.Repeat("x", 100*i))
	}
	settle(t, ctx, f)
	bad := f.Nodes[2]
	if err := bad.Stop(); err != nil {
		t.Fatal(err)
	}
	rot(t, filepath.Join(bad.Data, "state"))
	if err := f.Run(bad, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitUp(ctx, bad); err != nil {
		t.Fatal(err)
	}
	check := func() (api.GroupCheck, error) {
		c, err := f.Nodes[0].Client.GroupCheck(ctx, group, api.GroupCheckRequest{Deep: true})
		if err == nil && !c.Agreed {
			err = fmt.Errorf("check: %+v", c)
		}
		return c, err
	}
	// A node that is not connected yet is missing from the comparison, and finds by itself that it is odd.
	c, err := check()
	if err != nil || !slices.Equal(slices.Concat(c.Odd, c.Missing), []string{bad.Name}) {
		t.Fatalf("check: %+v, %v", c, err)
	}
	soon, cancel := context.WithTimeout(ctx, 20*time.Second) // less than until the next comparison
	defer cancel()
	err = farm.Poll(soon, 50*time.Millisecond, func() error {
		if !strings.Contains(bad.Log(), "quarantine over") {
			return errors.New("the state was not replaced")
		}
		g, err := bad.Client.Group(ctx, group)
		for _, r := range g.Replicas {
			if r.Mode != "live" {
				err = fmt.Errorf("%s is %s: %s", r.Node, r.Mode, r.Why)
			}
		}
		return err
	})
	if err != nil {
		t.Fatalf("%v; the log of %s:\n%s", err, bad.Name, bad.Log())
	}
	if c, err := check(); err != nil || len(c.Odd)+len(c.Missing) > 0 {
		t.Errorf("check after the healing: %+v, %v", c, err)
	}
	write(t, bad, "d1/after", "healed")
	settle(t, ctx, f)
}

// rot changes the last bit of one file's record: its version.
func rot(t *testing.T, dir string) {
	t.Helper()
	store, err := kv.OpenPebble(dir, kv.PebbleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	var key, value []byte
	err = store.Scan([]byte("g/"), []byte("g0"), func(k, v []byte) error {
		if !bytes.Contains(k, []byte("/m/n")) && !bytes.Contains(k, []byte("/n/n")) || !bytes.HasSuffix(k, []byte("\x00\x00f7")) {
			return nil
		}
		key, value = bytes.Clone(k), bytes.Clone(v)
		return kv.ErrStop
	})
	if err != nil || key == nil {
		t.Fatalf("no record to damage: %v", err)
	}
	value[len(value)-1] ^= 1
	b := store.Batch()
	if err := errors.Join(b.Set(key, value), b.Commit(), store.Sync()); err != nil {
		t.Fatal(err)
	}
}
