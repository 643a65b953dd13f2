package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
)

// partings is a log handler that tells why a peer is up or down.
type partings chan string

func (p partings) Enabled(context.Context, slog.Level) bool { return true }
func (p partings) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p partings) WithGroup(string) slog.Handler            { return p }
func (p partings) Handle(_ context.Context, r slog.Record) error {
	said := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { said[a.Key] = a.Value.String(); return true })
	if r.Message == "peer" {
		select {
		case p <- said["why"]:
		default:
		}
	}
	return nil
}

// next is what comes next of it.
func (p partings) next(t *testing.T) string {
	t.Helper()
	select {
	case why := <-p:
		return why
	case <-time.After(10 * time.Second):
		t.Fatal("the peer does not notice")
		return ""
	}
}

// upNode starts a node of its own cluster, or of the token's.
func upNode(t *testing.T, dir, name, token string, log slog.Handler) (*node, error) {
	t.Helper()
	cfg := Config{Data: dir, Name: name, Listen: "127.0.0.1:0", Join: token, Version: api.Version{Version: "test"}, Log: slog.New(log)}
	return startNode(t.Context(), cfg, &stages{log: cfg.Log})
}

// stopNode stops it as a signal would.
func stopNode(t *testing.T, n *node) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := errors.Join(n.serve(ctx), n.data.Close()); err != nil {
		t.Error(err)
	}
}

func wantUnfit(t *testing.T, what string, err error, level uint64) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeConflict || !strings.Contains(e.Why, fmt.Sprintf("level %d", level)) || !strings.Contains(e.Hint, "start a version") {
		t.Errorf("%s: %v", what, err)
	}
}

// markOf is the level that a data directory says.
func markOf(t *testing.T, dir string) int {
	t.Helper()
	id, err := access.Load(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return id.Level()
}

// A control group whose own state is of a newer program ends the start as every other meeting with that level does.
func TestControlStateOfANewerProgram(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "n1")
	n, err := upNode(t, dir, "n1", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	stopNode(t, n)
	state := openState(t, filepath.Join(dir, "state"))
	b := state.Batch()
	key := fmt.Appendf(nil, "g/%016x/e/level", control.ControlGroup)
	if err := errors.Join(b.Set(key, binary.AppendUvarint(nil, api.Level+1)), b.Commit(), state.Sync(), state.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = upNode(t, dir, "n1", "", slog.DiscardHandler)
	wantUnfit(t, "a start", err, api.Level+1)
}

// The mark of a data directory is for good, so it is no higher than what the control group has, whatever an entry says.
func TestMarkIsWhatTheControlGroupHas(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "n1")
	n, err := upNode(t, dir, "n1", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	stopNode(t, n)
	err = fmt.Errorf("apply: %w", &replica.NewerLevelError{Level: 65, Knows: api.Level})
	wantUnfit(t, "an entry", n.newerLevel(err), 65)
	if got := markOf(t, dir); got != api.Level {
		t.Errorf("marked with level %d by an entry that says so", got)
	}
	if e := n.newerLevel(&replica.NewerLevelError{Level: api.Level, Knows: api.Level - 1}); e != nil {
		t.Errorf("a level that the program knows: %v", e)
	}
	n.ctl.publish(&control.State{Cluster: control.Cluster{ID: "c", Level: api.Level + 1}})
	wantUnfit(t, "an entry", n.newerLevel(err), 65)
	if want := uint64(api.Level + 1); n.marked != want {
		t.Errorf("marked with level %d, the control group has %d", n.marked, want)
	}
	if _, err := access.Load(dir, time.Now); !errors.Is(err, access.ErrNewerLevel) {
		t.Errorf("the data directory: %v", err)
	}
}

// A node that ends for its level says goodbye, so that nobody waits for it; one that was expelled has nothing to say.
func TestDepartureInGoodOrder(t *testing.T) {
	for what, c := range map[string]struct {
		depart  func(n *node)
		goodbye bool
	}{
		"a refusal": {func(n *node) { n.leaveFor(control.Unfit("serve", "n2", knows(), api.Level+1)) }, true},
		"an entry":  {func(n *node) { n.failed(&replica.NewerLevelError{Level: api.Level + 1, Knows: api.Level}) }, true},
		"expelled":  {func(n *node) { n.expel(control.Expelled("n2")) }, false},
	} {
		t.Run(what, func(t *testing.T) {
			gone, met := make(partings, 64), make(partings, 64)
			n1, err := upNode(t, filepath.Join(t.TempDir(), "n1"), "n1", "", gone)
			if err != nil {
				t.Fatal(err)
			}
			defer stopNode(t, n1)
			n2, err := upNode(t, filepath.Join(t.TempDir(), "n2"), "n2", tokenOf(t, n1), met)
			if err != nil {
				t.Fatal(err)
			}
			n2.net.Send(n1.self, 1<<60, []*raftpb.Message{{Type: raftpb.MsgHeartbeatResp.Enum()}}) // of no group: it makes the connection
			for _, side := range []partings{gone, met} {
				for side.next(t) != transport.Connected.String() {
				}
			}
			c.depart(n2)
			err = errors.Join(n2.serve(t.Context()), n2.data.Close())
			if c.goodbye {
				wantUnfit(t, "the node", err, api.Level+1)
			}
			why := gone.next(t)
			for why == transport.Connected.String() { // the other way round, too
				why = gone.next(t)
			}
			if (why == transport.Goodbye.String()) != c.goodbye {
				t.Errorf("the peer says: %s", why)
			}
		})
	}
}

// tokenOf waits until the cluster is there.
func tokenOf(t *testing.T, n *node) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		token, err := n.TokenCreate(ctx, time.Hour)
		var e *api.Error
		if err == nil {
			return token.Token
		}
		if !errors.As(err, &e) || e.Code != api.CodeUnavailable {
			t.Fatal(err)
		}
		select {
		case <-n.ctl.news:
			n.ctl.nudge()
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// What the control group says to an introduction ends the node if asking again would not change it.
func TestNotAdmitted(t *testing.T) {
	for code, want := range map[api.Code]struct{ ends, expelled bool }{
		api.CodeDenied: {true, true}, api.CodeDamage: {true, true}, api.CodeConflict: {true, false}, api.CodeUnavailable: {}, api.CodeUsage: {},
	} {
		n := &node{quit: make(chan departure, 1), life: &life{path: filepath.Join(t.TempDir(), lifeFile)}, log: slog.New(slog.DiscardHandler)}
		n.notAdmitted(fmt.Errorf("propose: %w", &api.Error{Code: code}))
		select {
		case d := <-n.quit:
			if !want.ends || d.expelled != want.expelled || d.why.Code != code || (n.life.rec.Refused != nil) != want.expelled {
				t.Errorf("%s: it ends with %+v", code, d)
			}
		default:
			if want.ends {
				t.Errorf("%s: it asks again and again", code)
			}
		}
	}
	n := &node{quit: make(chan departure, 1)}
	if n.notAdmitted(errors.New("no answer")); len(n.quit) > 0 {
		t.Error("it ends because nobody answers")
	}
}
