package server

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// A node that is silent, not refused but without an answer, costs a status the time of a question or two, however many
// groups it has a part in, and is said to be down in each.
func TestStatusWithASilentNode(t *testing.T) {
	n, err := upNode(t, filepath.Join(t.TempDir(), "n1"), "n1", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer stopNode(t, n)
	tokenOf(t, n)
	await(t, "nothing more is published", func() bool {
		g, ok := n.ctl.state().Group(control.ControlGroup)
		me, _ := n.ctl.state().Node(n.self)
		return ok && g.InSync.Term > 0 && me.Life.Age > 0
	})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	st := *n.ctl.state()
	st.Nodes = append(st.Nodes[:1:1], control.Node{ID: 2, Name: "n2", Address: silent.Addr().String()})
	const groups = 2 * askedAtOnce
	for i := range uint64(groups) {
		st.Groups = append(st.Groups[:1+i:1+i], control.Group{ID: 2 + i, Name: fmt.Sprint("g", i), Kind: control.KindFiles,
			Members: []control.Member{{Node: 2, Replica: 1, Role: control.RoleVoter}}})
	}
	n.ctl.publish(&st)
	began := time.Now()
	status, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*answerTime {
		t.Errorf("it took %s for %d groups", took, groups)
	}
	if len(status.Dirs) != groups {
		t.Fatalf("%d directories, want %d", len(status.Dirs), groups)
	}
	for _, d := range status.Dirs {
		if m := d.Nodes[0]; m.Mode != "down" || !strings.Contains(m.Why, "does not answer") {
			t.Fatalf("%s: %s: %s", d.Group, m.Mode, m.Why)
		}
	}
}
