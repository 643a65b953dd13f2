package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// sealedNode is a node of its own cluster with a directory in group web.
type sealedNode struct {
	t    *testing.T
	data string
	dir  string
	made uint64 // files
	*node
}

func startSealed(t *testing.T) *sealedNode {
	t.Helper()
	s := &sealedNode{t: t, data: filepath.Join(t.TempDir(), "n1"), dir: filepath.Join(t.TempDir(), "web")}
	s.start()
	tokenOf(t, s.node) // it is introduced
	if err := s.DirCreate(t.Context(), api.DirCreate{Name: "web", Paths: map[string]string{"n1": s.dir}}); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	return s
}

func (s *sealedNode) start() {
	s.t.Helper()
	n, err := upNode(s.t, s.data, "n1", "", slog.DiscardHandler)
	if err != nil {
		s.t.Fatal(err)
	}
	s.node = n
}

// stop stops the node if it runs.
func (s *sealedNode) stop() {
	s.t.Helper()
	if s.node != nil {
		stopNode(s.t, s.node)
		s.node = nil
	}
}

func (s *sealedNode) web() *control.Group {
	s.t.Helper()
	g, ok := s.ctl.state().GroupNamed("web")
	if !ok {
		s.t.Fatal("no group web")
	}
	return g
}

// await looks again whenever the node may have looked.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// awaitRuns waits until the group runs on the history that the control group has. A replica that stands aside for good
// never will.
func (s *sealedNode) awaitRuns() {
	s.t.Helper()
	await(s.t, "the group runs", func() bool {
		g, ok := s.ctl.state().GroupNamed("web")
		if !ok {
			return false
		}
		if why, aside := s.suspected(g.ID); aside {
			s.t.Fatalf("the group does not run: %v", why)
		}
		h, err := s.holding(g.ID)
		if err != nil || h.grp == nil || h.grp.Line().History != g.History {
			return false
		}
		compared, _ := h.ready()
		return compared
	})
}

// awaitReturn waits until the replica, which stands aside, is taken back and runs.
func (s *sealedNode) awaitReturn() {
	s.t.Helper()
	await(s.t, "it is taken back", func() bool { _, aside := s.suspected(s.web().ID); return !aside })
	s.awaitRuns()
}

// put writes a file and waits until the group has it.
func (s *sealedNode) put(name string) {
	s.t.Helper()
	// By another process: what this one writes is taken for the agent's own.
	if out, err := exec.CommandContext(s.t.Context(), "sh", "-c", `printf x >"$0"`, filepath.Join(s.dir, name)).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	if w, err := s.DirWait(s.t.Context(), "web", api.DirWaitFor{Mode: api.WaitNode, Node: "n1", Timeout: "20s"}, nil); err != nil || !w.Done {
		s.t.Fatalf("%+v, %v", w, err)
	}
	s.made++
	await(s.t, "the group has every file", func() bool { return s.files() == s.made })
}

func (s *sealedNode) files() uint64 {
	s.t.Helper()
	r, err := s.reportHere(s.t.Context(), groupRequest{Group: s.web().ID})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Files
}

// fork is the command that a recovery would propose now that the group is sealed.
func (s *sealedNode) fork(sealed seal, to byte) *control.Command {
	s.t.Helper()
	g := s.web()
	st, end, err := s.eng.StoppedEnd(g.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	return &control.Command{By: "n1", ForkGroup: &control.ForkGroup{Group: "web", Was: g.History, To: [16]byte{to}, Node: "n1", InSync: sealed.InSync, Fork: control.Fork{
		Before: st.Line.History, Index: end.Commit.Index, Term: end.Commit.Term, Start: end.Last.Index + 1, Cause: control.ForkRecover,
	}}}
}

func (s *sealedNode) sealWeb() seal {
	s.t.Helper()
	sealed, err := s.seal(s.web().ID)
	if err != nil {
		s.t.Fatal(err)
	}
	return sealed
}

// TestRecoveryThatComesLate: nobody knows what became of a recovery, the node starts again, and the group goes on. What it
// acknowledges from then on cannot be cut off any more.
func TestRecoveryThatComesLate(t *testing.T) {
	s := startSealed(t)
	defer s.stop()
	s.put("before")
	id := s.web().ID
	late := s.fork(s.sealWeb(), 9)
	for range 3 { // whatever is looked at
		if err := s.agree(t.Context(), s.ctl.state()); err != nil {
			t.Fatal(err)
		}
	}
	if s.holds(id) {
		t.Fatal("it runs while its recovery is decided")
	}
	if _, err := s.seal(id); err == nil {
		t.Error("two recoveries at once")
	}
	s.stop()
	s.start()
	s.awaitRuns()
	was := s.web().History
	s.put("acknowledged")
	_, err := s.ctl.propose(t.Context(), late)
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeConflict {
		t.Fatalf("the recovery of before: %v", err)
	}
	s.ctl.nudge()
	if err := s.agree(t.Context(), s.ctl.state()); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	if s.web().History != was || s.files() != 2 {
		t.Errorf("history %x after %x, %d files", s.web().History, was, s.files())
	}
	if left := keysOf(t, s.state, sealPrefix); left != 0 {
		t.Errorf("%d seals are left", left)
	}
}

// TestRecoveryDecidedAfterTheWait: the command is executed after its proposer has gone, also while a look at the control
// group is under way that began before: the group comes to its new history, and nowhere else first.
func TestRecoveryDecidedAfterTheWait(t *testing.T) {
	s := startSealed(t)
	defer func() { stopNode(t, s.node) }()
	s.put("before")
	old := s.ctl.state()
	sealed := s.sealWeb()
	cmd := s.fork(sealed, 9)
	if _, err := s.ctl.propose(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	s.answered(s.web().ID)
	if err := s.agree(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	h, err := s.holding(s.web().ID)
	if err != nil {
		t.Fatal(err)
	}
	if line := h.grp.Line(); line.History != [16]byte{9} || line.Start != cmd.ForkGroup.Fork.Start {
		t.Errorf("it runs on %+v", line)
	}
	s.put("after")
	if s.files() != 2 {
		t.Errorf("%d files", s.files())
	}
}

// TestRecoveryWithoutAControlGroup: the control group has no majority, so the one who asks is told that nobody knows, and
// the group stays where it is, over a restart too, until the control group can say what becomes of it.
func TestRecoveryWithoutAControlGroup(t *testing.T) {
	s := startSealed(t)
	defer s.stop()
	s.put("before")
	two := filepath.Join(t.TempDir(), "n2")
	n2, err := upNode(t, two, "n2", tokenOf(t, s.node), slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the control group needs both", func() bool { return len(s.ctl.group().Fresh().Voters) == 2 })
	await(t, "n2 is introduced", func() bool { _, ok := n2.ctl.state().GroupNamed("web"); return ok })
	stopNode(t, n2)
	id, version := s.web().ID, s.web().InSync.Version
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = s.recoverHere(ctx, groupRequest{Group: id, Path: "n1"})
	var unknown *api.Error
	if !errors.As(err, &unknown) || unknown.Code != api.CodeUnavailable || unknown.Hint == "" {
		t.Fatalf("%v", err)
	}
	_ = s.agree(t.Context(), s.ctl.state()) // which fails: nobody decides
	if s.holds(id) {
		t.Fatal("it runs though nobody knows what becomes of it")
	}
	if _, err := s.holding(id); err == nil || !errors.As(err, &unknown) || unknown.Code != api.CodeUnavailable {
		t.Errorf("who asks for it is told: %v", err)
	}
	if n2, err = upNode(t, two, "n2", "", slog.DiscardHandler); err != nil {
		t.Fatal(err)
	}
	defer stopNode(t, n2) // while both can still hand over
	await(t, "it is decided", func() bool { return s.web().InSync.Version > version })
	s.awaitRuns()
	if s.files() != 1 {
		t.Errorf("%d files", s.files())
	}
}

// everything is what a node holds of a group: state, placed table, record.
func (s *sealedNode) everything(g *control.Group) map[string]int {
	s.t.Helper()
	m, _ := g.Member(s.self)
	_, end, err := s.eng.StoppedEnd(g.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	return map[string]int{
		"state": keysOf(s.t, s.state, string(kvGroup(g.ID))), "placed": keysOf(s.t, s.state, string(tablePrefix(g.ID, m.Binding))+"t/"),
		"owned": keysOf(s.t, s.state, string(ownedKey(g.ID))), "log": int(end.Last.Index),
	}
}

func kvGroup(id uint64) []byte {
	return append(bytes.ReplaceAll(ownedKey(id), []byte("o/"), []byte("g/")), '/')
}

// TestControlGroupThatWentBack: the control group was recovered from a copy that lacks a fork. Who holds the later history
// drops nothing, says so, and can be told to go on with it.
func TestControlGroupThatWentBack(t *testing.T) {
	s := startSealed(t)
	s.put("before")
	old, id := s.ctl.state(), s.web().ID
	if _, err := s.recoverHere(t.Context(), groupRequest{Group: id, Path: "n1"}); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	s.put("after")
	later := s.web().History
	g, _ := old.Group(id)
	if g.History == later {
		t.Fatal("it was not forked")
	}
	stopNode(t, s.node)
	goBack(t, filepath.Join(s.data, "state"), g)
	s.start()
	defer func() { stopNode(t, s.node) }()
	await(t, "it stands aside", func() bool { _, aside := s.suspected(id); return aside })
	st, err := s.eng.Standing(id)
	if err != nil || s.holds(id) || st.Line.History != later {
		t.Fatalf("%+v, %v; running %v", st, err, s.holds(id))
	}
	kept := s.everything(g)
	if kept["placed"] == 0 || kept["state"] == 0 || kept["owned"] == 0 || kept["log"] == 0 {
		t.Errorf("left of it: %v", kept)
	}
	status, err := s.Status(t.Context())
	if err != nil || !slices.ContainsFunc(status.Warnings, func(w api.Warning) bool { return w.Name == "unknown_history" && w.Hint != "" }) {
		t.Errorf("%+v, %v", status.Warnings, err)
	}
	var refused *api.Error
	if _, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web", From: "n9"}); !errors.As(err, &refused) || refused.Code != api.CodeNotFound {
		t.Errorf("from nobody: %v", err)
	}
	done, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web", From: "n1"})
	if err != nil || done.Node != "n1" {
		t.Fatalf("%+v, %v", done, err)
	}
	s.awaitReturn()
	s.put("again")
	if s.files() != 3 || s.web().History == g.History || !s.web().Knows(later) {
		t.Errorf("%d files on %x", s.files(), s.web().History)
	}
	if _, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web", From: "n1"}); !errors.As(err, &refused) || refused.Code != api.CodeConflict {
		t.Errorf("from one that has not gone astray: %v", err)
	}
}

// goBack has the control group's state in a stopped node's store hold g as it was.
func goBack(t *testing.T, dir string, g *control.Group) {
	t.Helper()
	state := openState(t, dir)
	key := binary.BigEndian.AppendUint64([]byte{'g'}, g.ID)
	v, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	b := state.Batch()
	prefix := kvGroup(control.ControlGroup)
	err = state.Scan(prefix, kv.PrefixEnd(prefix), func(k, _ []byte) error {
		if !bytes.HasSuffix(k, key) {
			return nil
		}
		found++
		return b.Set(slices.Clone(k), v)
	})
	if err := errors.Join(err, b.Commit(), state.Sync(), state.Close()); err != nil || found != 1 {
		t.Fatalf("%d records, %v", found, err)
	}
}

// TestControlStateThatHeals: a copy of the control group's state that is older for a while costs a pause and nothing else.
func TestControlStateThatHeals(t *testing.T) {
	s := startSealed(t)
	defer func() { stopNode(t, s.node) }()
	s.put("before")
	old, id := s.ctl.state(), s.web().ID
	if _, err := s.recoverHere(t.Context(), groupRequest{Group: id, Path: "n1"}); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	s.put("after")
	now := s.ctl.state()
	s.ctl.publish(old)
	await(t, "it stands aside", func() bool { _, aside := s.suspected(id); return aside })
	s.ctl.publish(now)
	s.awaitReturn()
	if _, aside := s.suspected(id); aside || s.files() != 2 {
		t.Errorf("aside %v, %d files", aside, s.files())
	}
}
