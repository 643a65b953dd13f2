package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// threeNodes is a cluster of three in this process, with a directory in group web on all.
func threeNodes(t *testing.T) []*node {
	t.Helper()
	var nodes []*node
	paths := map[string]string{}
	for _, name := range []string{"n1", "n2", "n3"} {
		token := ""
		if len(nodes) > 0 {
			token = tokenOf(t, nodes[0])
		}
		n, err := upNode(t, filepath.Join(t.TempDir(), name), name, token, slog.DiscardHandler)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
		paths[name] = filepath.Join(t.TempDir(), "web")
	}
	tokenOf(t, nodes[0]) // it is introduced
	await(t, "all nodes are known", func() bool { return len(nodes[0].ctl.state().Nodes) == 3 })
	await(t, "the group is made", func() bool {
		return nodes[0].DirCreate(t.Context(), api.DirCreate{Name: "web", Paths: paths}) == nil
	})
	for _, n := range nodes {
		awaitWeb(t, n, [16]byte{})
	}
	return nodes
}

func webOf(n *node) *control.Group {
	g, ok := n.ctl.state().GroupNamed("web")
	if !ok {
		return &control.Group{}
	}
	return g
}

// awaitWeb waits until the group runs on a node on another history than one.
func awaitWeb(t *testing.T, n *node, than [16]byte) {
	t.Helper()
	await(t, "web runs on "+n.id.Name(), func() bool {
		g := webOf(n)
		h, err := n.holding(g.ID)
		return err == nil && h.grp != nil && h.grp.Line().History == g.History && g.History != than && h.grp.Core().Leader != 0
	})
}

// webBackup is what a backup holds of the group now.
func webBackup(t *testing.T, n *node) (api.Restore, []byte) {
	t.Helper()
	var out bytes.Buffer
	if err := n.Backup(t.Context(), api.BackupCreate{Groups: []string{"web"}}, &out); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "web.backup")
	if err := writeFile(file, &out); err != nil {
		t.Fatal(err)
	}
	f := BackupFile{Path: file}
	req, _, err := f.Request(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	req.As, req.OverLiving = "web", true
	var body bytes.Buffer
	if err := f.Send(t.Context(), "web", &body); err != nil {
		t.Fatal(err)
	}
	return req, body.Bytes()
}

// answered is an acknowledged write.
type answeredWrite struct {
	history [16]byte
	at      uint64
}

// TestRestoreSaysHowFarItGoes: writes go on through all of a restore, on every node. What was acknowledged of the history
// that is given up is not beyond what the restore said.
func TestRestoreSaysHowFarItGoes(t *testing.T) {
	nodes := threeNodes(t)
	defer func() {
		for _, n := range slices.Backward(nodes) {
			stopNode(t, n)
		}
	}()
	req, body := webBackup(t, nodes[0])
	was := webOf(nodes[0]).History
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var writes []answeredWrite
	var writers sync.WaitGroup
	for _, n := range nodes {
		writers.Go(func() {
			for ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				a, err := n.sessionOf(webOf(n)).Probe(ctx, core.AckQuorum)
				cancel()
				if err == nil && a.Code == core.Committed {
					mu.Lock()
					writes = append(writes, answeredWrite{a.History, a.Position.Index})
					mu.Unlock()
				}
			}
		})
	}
	seen := func(history [16]byte) (n int, last uint64) {
		mu.Lock()
		defer mu.Unlock()
		for _, w := range writes {
			if w.history == history {
				n, last = n+1, max(last, w.at)
			}
		}
		return n, last
	}
	await(t, "writes are acknowledged", func() bool { n, _ := seen(was); return n > 50 })
	out, err := nodes[1].Restore(t.Context(), req, bytes.NewReader(body))
	if err != nil {
		stop()
		writers.Wait()
		t.Fatal(err)
	}
	now := webOf(nodes[1]).History
	await(t, "writes are acknowledged again", func() bool { n, _ := seen(now); return n > 50 })
	stop()
	writers.Wait()
	_, last := seen(was)
	if now == was || out.GivenUp < last || len(out.Unasked) != 0 {
		t.Errorf("history %x after %x; given up %d, %v not asked; the last write acknowledged is at %d", now, was, out.GivenUp, out.Unasked, last)
	}
	if g := webOf(nodes[1]); g.Fork.GivenUp != out.GivenUp {
		t.Errorf("the control group says %+v", g.Fork)
	}
	for _, n := range nodes {
		awaitWeb(t, n, was)
		if left := keysOf(t, n.state, sealPrefix); left != 0 {
			t.Errorf("%d seals are left on %s", left, n.id.Name())
		}
	}
}

// TestRestoreWithVotersDown: one of three voters does not keep a restore from saying how far it goes; with two down nobody
// knows, and it says whose word is missing.
func TestRestoreWithVotersDown(t *testing.T) {
	nodes := threeNodes(t)
	defer func() { stopNode(t, nodes[0]) }()
	g := webOf(nodes[0])
	still := func() stillGroup {
		t.Helper()
		s, err := nodes[0].still(t.Context(), g.ID)
		if err != nil {
			t.Fatal(err)
		}
		s.end()
		await(t, "the seal is lifted", func() bool { return webOf(nodes[0]).InSync.Version > s.inSync })
		return s
	}
	if s := still(); !s.bounded || len(s.silent) != 0 || s.last == 0 {
		t.Errorf("all answer: %+v", s)
	}
	stopNode(t, nodes[2])
	if s := still(); !s.bounded || !slices.Equal(s.silent, []string{"n3"}) {
		t.Errorf("two of three answer: %+v", s)
	}
	// The control group needs n2, so what it would have answered is left out by hand.
	g = webOf(nodes[0])
	one := sealAnswer{Replica: g.Members[0].Replica, History: g.History, Voters: []uint64{1, 2, 3}}
	if blocked(g, []sealAnswer{one}) {
		t.Error("one of three is enough")
	}
	stopNode(t, nodes[1])
}

// TestBlocked: by whatever configuration may be in force.
func TestBlocked(t *testing.T) {
	group := func(voters ...uint64) *control.Group {
		g := &control.Group{History: [16]byte{1}}
		for _, v := range voters {
			g.Members = append(g.Members, control.Member{Node: v, Replica: v, Role: control.RoleVoter})
		}
		return g
	}
	at := func(replica uint64, history byte, voters, outgoing []uint64) sealAnswer {
		return sealAnswer{Replica: replica, History: [16]byte{history}, Voters: voters, Outgoing: outgoing}
	}
	three, other := []uint64{1, 2, 3}, []uint64{2, 3, 4}
	for name, c := range map[string]struct {
		group *control.Group
		here  []sealAnswer
		want  bool
	}{
		"nobody":                      {group(1, 2, 3), nil, false},
		"a majority":                  {group(1, 2, 3), []sealAnswer{at(1, 1, three, nil), at(2, 1, three, nil)}, true},
		"one of three":                {group(1, 2, 3), []sealAnswer{at(1, 1, three, nil)}, false},
		"half of four":                {group(1, 2, 3, 4), []sealAnswer{at(1, 1, nil, nil), at(2, 1, nil, nil)}, true},
		"of another history":          {group(1, 2, 3), []sealAnswer{at(1, 1, three, nil), at(2, 2, three, nil)}, false},
		"the configuration is ahead":  {group(1, 2, 3), []sealAnswer{at(1, 1, three, nil), at(2, 1, []uint64{2, 4, 5}, nil)}, false},
		"the configuration is behind": {group(2, 3, 4), []sealAnswer{at(1, 1, three, nil), at(2, 1, three, nil)}, false},
		"joint, one side stands":      {group(2, 3, 4), []sealAnswer{at(2, 1, other, three), at(3, 1, other, three)}, true},
		"joint, the old side moves":   {group(1, 2), []sealAnswer{at(1, 1, []uint64{1, 2}, []uint64{1, 3, 4}), at(2, 1, []uint64{1, 2}, []uint64{1, 3, 4})}, true},
	} {
		if got := blocked(c.group, c.here); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestSealIsReleasedWithItsStream: who asked for a seal vanishes; the group goes on by itself, on its history.
func TestSealIsReleasedWithItsStream(t *testing.T) {
	nodes := threeNodes(t)
	defer func() {
		for _, n := range slices.Backward(nodes) {
			stopNode(t, n)
		}
	}()
	g := webOf(nodes[0])
	a, release, err := nodes[0].sealAt(t.Context(), nodes[1].self, sealRequest{Group: g.ID})
	if err != nil || a.InSync != g.InSync.Version || a.History != g.History || a.Last.Index == 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	var refused *api.Error
	if _, err := nodes[1].holding(g.ID); !errors.As(err, &refused) || refused.Code != api.CodeUnavailable {
		t.Errorf("it runs while it is sealed: %v", err)
	}
	release()
	awaitWeb(t, nodes[1], [16]byte{})
	if now := webOf(nodes[1]); now.History != g.History || now.InSync.Version <= g.InSync.Version {
		t.Errorf("history %s, version %d after %d", hex.EncodeToString(now.History[:]), now.InSync.Version, g.InSync.Version)
	}
	if _, _, err := nodes[0].sealAt(t.Context(), nodes[1].self, sealRequest{Group: 99}); !errors.As(err, &refused) {
		t.Errorf("a group that is not there: %v", err)
	}
}

// TestRestoreIsAskedForAgain: the in-sync set changes between the seals and the decision; nothing is forked by a version
// that not every seal has.
func TestRestoreIsAskedForAgain(t *testing.T) {
	s := startSealed(t)
	defer s.stop()
	s.put("before")
	req, body := webBackup(t, s.node)
	s.put("after")
	g := s.web()
	p, err := s.planRestore(t.Context(), &req)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.upload(t.Context(), s.self, "0011223344556677", io.Reader(bytes.NewReader(body))); err != nil {
		t.Fatal(err)
	}
	cmd := restoreCommand(&req, &p, "n1", "0011223344556677")
	still, err := s.still(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ctl.propose(t.Context(), &control.Command{RefuseFork: &control.RefuseFork{Group: g.ID, InSync: still.inSync}}); err != nil {
		t.Fatal(err)
	}
	cmd.ForkGroup.InSync = still.inSync
	var refused *api.Error
	if _, err := s.ctl.propose(t.Context(), cmd); !errors.As(err, &refused) || refused.Code != api.CodeConflict {
		t.Errorf("at a version of before: %v", err)
	}
	still.end()
	if err := s.forkLiving(t.Context(), g, cmd, &p.out); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	if s.files() != 1 || p.out.GivenUp < 2 || s.web().Fork.GivenUp != p.out.GivenUp {
		t.Errorf("%d files; %+v", s.files(), p.out)
	}
}
