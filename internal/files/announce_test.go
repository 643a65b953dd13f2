package files

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

func FuzzAnnouncement(f *testing.F) {
	list := []announced{
		{"a/b", manifest.Node{Kind: manifest.File, Mode: 0o644, UID: 1, GID: 2, MTime: -3, Size: 4, Hash: manifest.Hash{5}, Version: 6}},
		{"", manifest.Node{Kind: manifest.Dir, Mode: 0o755, Version: 7}},
		{"l", manifest.Node{Kind: manifest.Symlink, Mode: 0o777, Target: "t\xff", Version: 8}},
		{"gone", manifest.Node{}},
	}
	var b []byte
	for _, p := range list {
		b = appendAnnounced(b, p)
	}
	if got, err := decodeAnnounced(b); err != nil || fmt.Sprint(got) != fmt.Sprint(list) {
		f.Fatalf("%v became %v, %v", list, got, err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeAnnounced(b)
		if err != nil {
			return
		}
		var again []byte
		for _, p := range list {
			again = appendAnnounced(again, p)
		}
		if got, err := decodeAnnounced(again); err != nil || fmt.Sprint(got) != fmt.Sprint(list) {
			t.Errorf("%v became %v, %v", list, got, err)
		}
	})
}

// interrupted has the other nodes carry out do, nd place it, and the process of nd die before it has recorded any of it.
func interrupted(nd *node, paths []string, do func()) {
	f := nd.f
	f.t.Helper()
	before := nd.table.Crash(func(n int) int { return n })
	do()
	f.flush()
	v, err := nd.View()
	must(f.t, err)
	var list []byte
	for _, p := range paths {
		n, _, err := manifest.Get(v, p)
		must(f.t, err)
		list = appendAnnounced(list, announced{p, n})
	}
	must(f.t, v.Close())
	nd.down()
	nd.table = before
	b := nd.table.Batch()
	must(f.t, b.Set(metaKey(metaPlacing), list))
	must(f.t, b.Commit())
}

// TestDiedWhilePlacing: what a process had brought to disk and could not record is no edit, although the group has
// gone on since; what somebody made of it while the process was away is one.
func TestDiedWhilePlacing(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	author, nd := f.nodes[0], f.nodes[1]
	for _, p := range []string{"edited", "gone", "back", "mode", "d/in", "theirs", "emptied/x"} {
		must(t, os.MkdirAll(filepath.Dir(author.path(p)), 0o755))
		author.write(p, "first")
	}
	must(t, os.Symlink("first", author.path("link")))
	f.flush()
	relink := func(to string) {
		must(t, os.Remove(author.path("link")))
		must(t, os.Symlink(to, author.path("link")))
	}
	paths := []string{"edited", "gone", "back", "mode", "d/in", "theirs", "new", "link", "made", "made/in", "emptied/x", "emptied"}
	interrupted(nd, paths, func() {
		for _, p := range []string{"edited", "gone", "d/in", "theirs", "new"} {
			author.write(p, "second")
		}
		must(t, os.Remove(author.path("back")))
		must(t, os.Chmod(author.path("mode"), 0o600))
		relink("second")
		must(t, os.Mkdir(author.path("made"), 0o700))
		author.write("made/in", "second")
		must(t, os.RemoveAll(author.path("emptied")))
	})
	nd.write("theirs", "mine")
	for _, p := range []string{"edited", "d/in", "theirs", "back"} {
		author.write(p, "third")
	}
	for _, p := range []string{"gone", "new", "mode", "made"} {
		must(t, os.RemoveAll(author.path(p)))
	}
	relink("third")
	f.flush()
	nd.up()
	f.flush()
	f.same()
	for _, p := range []string{"edited", "d/in", "theirs", "back"} {
		if got := nd.read(p); got != "third" {
			t.Errorf("%s is %q", p, got)
		}
	}
	for _, p := range []string{"gone", "new", "mode", "made", "emptied"} {
		if _, err := os.Lstat(author.path(p)); !os.IsNotExist(err) {
			t.Errorf("%s is back: %v", p, err)
		}
	}
	copies, err := filepath.Glob(author.path("*.conflict-*"))
	must(t, err)
	if len(copies) != 1 || !strings.Contains(copies[0], "theirs.conflict-n2") {
		t.Errorf("conflict copies %v", copies)
	}
	if _, ok, err := nd.table.Get(metaKey(metaPlacing)); err != nil || ok {
		t.Errorf("the announcement is still there: %v", err)
	}
}

// TestForkDropsAnnouncement: versions of another history mean nothing.
func TestForkDropsAnnouncement(t *testing.T) {
	s := kv.NewMemory()
	b := s.Batch()
	must(t, b.Set(metaKey(metaPlacing), appendAnnounced(nil, announced{"p", manifest.Node{Kind: manifest.Dir, Version: 9}})))
	must(t, b.Commit())
	must(t, ForgetAbove(s, 5))
	a := &Agent{cfg: Config{Table: s}, table: table{s}}
	must(t, a.finishPlacing(context.Background()))
	if rec, err := a.table.get("p"); err != nil || rec.Version != 0 {
		t.Errorf("%+v, %v", rec, err)
	}
}
