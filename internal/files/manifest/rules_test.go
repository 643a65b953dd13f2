package manifest

import (
	"slices"
	"strings"
	"testing"
)

// TestRules: given a state (built by node "a" in entry 11, so versions are 11, and perhaps touched by "b" in
// entry 12), a change by "c" gives an outcome and a tree.
func TestRules(t *testing.T) {
	copyOf := func(p, node string) string { return p + ".conflict-" + node + "-" + stamp }
	touched := func(n Node) Node { n.MTime++; return n }
	for _, tc := range []struct {
		name    string
		policy  string
		have    []Change // by a, entry 11
		then    []Change // by b, entry 12
		change  []Change // by c, entry 13
		want    []Outcome
		tree    map[string]Node
		noEvent bool
	}{
		{name: "create", change: []Change{put("f", 0, file("1"))},
			want: []Outcome{{Code: Accepted, Version: 13}}, tree: map[string]Node{"f": file("1")}},
		{name: "modify", have: []Change{put("f", 0, file("1"))}, change: []Change{put("f", 11, file("2"))},
			then: []Change{put("g", 0, file("x"))},
			want: []Outcome{{Code: Accepted, Version: 13}}, tree: map[string]Node{"f": file("2"), "g": file("x")}},
		{name: "same whatever the base", have: []Change{put("f", 0, file("1"))}, change: []Change{put("f", 5, file("1"))},
			then: []Change{put("g", 0, file("x"))},
			want: []Outcome{{Code: Same, Version: 11}}, tree: map[string]Node{"f": file("1"), "g": file("x")}, noEvent: true},
		{name: "delete", have: []Change{put("f", 0, file("1"))}, then: []Change{put("g", 0, file("x"))},
			change: []Change{del("f", 11)}, want: []Outcome{{}}, tree: map[string]Node{"g": file("x")}},
		{name: "delete what is gone", change: []Change{del("f", 4)}, want: []Outcome{{Code: Same}}, tree: map[string]Node{}, noEvent: true},
		{name: "delete stale", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{del("f", 11)}, want: []Outcome{{Code: Superseded, Version: 12}}, tree: map[string]Node{"f": file("2")}, noEvent: true},
		{name: "edit beats delete", have: []Change{put("f", 0, file("1"))}, then: []Change{del("f", 11)},
			change: []Change{put("f", 11, file("2"))}, want: []Outcome{{Code: Accepted, Version: 13}}, tree: map[string]Node{"f": file("2")}},
		{name: "conflict keep-both", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{put("f", 11, file("3"))}, want: []Outcome{{Code: Conflicted, Version: 12, Copy: copyOf("f", "c")}},
			tree: map[string]Node{"f": file("2"), copyOf("f", "c"): file("3")}},
		{name: "conflict first", policy: "first", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{put("f", 11, fileAt("3", 9999))}, want: []Outcome{{Code: Conflicted, Version: 12, Copy: copyOf("f", "c")}},
			tree: map[string]Node{"f": file("2"), copyOf("f", "c"): fileAt("3", 9999)}},
		{name: "conflict newest wins", policy: "newest", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{put("f", 11, fileAt("3", 9999))}, want: []Outcome{{Code: Accepted, Version: 13, Copy: copyOf("f", "b")}},
			tree: map[string]Node{"f": fileAt("3", 9999), copyOf("f", "b"): file("2")}},
		{name: "conflict newest loses", policy: "newest", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{put("f", 11, file("3"))}, want: []Outcome{{Code: Conflicted, Version: 12, Copy: copyOf("f", "c")}},
			tree: map[string]Node{"f": file("2"), copyOf("f", "c"): file("3")}},
		{name: "conflict prefer newcomer", policy: "prefer:c", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{put("f", 11, file("3"))}, want: []Outcome{{Code: Accepted, Version: 13, Copy: copyOf("f", "b")}},
			tree: map[string]Node{"f": file("3"), copyOf("f", "b"): file("2")}},
		{name: "conflict prefer holder", policy: "prefer:b", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{put("f", 11, file("3"))}, want: []Outcome{{Code: Conflicted, Version: 12, Copy: copyOf("f", "c")}},
			tree: map[string]Node{"f": file("2"), copyOf("f", "c"): file("3")}},
		{name: "same content, stale: metadata last wins", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, fileAt("1", 5))},
			change: []Change{put("f", 11, fileAt("1", 6))}, want: []Outcome{{Code: Accepted, Version: 13}}, tree: map[string]Node{"f": fileAt("1", 6)}},
		{name: "metadata without content, stale", have: []Change{put("f", 0, file("1"))}, then: []Change{put("f", 11, file("2"))},
			change: []Change{{Path: "f", Base: 11, Node: touched(file("1")), SameContent: true}}, want: []Outcome{{Code: Superseded, Version: 12}},
			tree: map[string]Node{"f": file("2")}, noEvent: true},
		{name: "metadata without content, deleted", have: []Change{put("f", 0, file("1"))}, then: []Change{del("f", 11)},
			change: []Change{{Path: "f", Base: 11, Node: touched(file("1")), SameContent: true}}, want: []Outcome{{Code: Superseded}},
			tree: map[string]Node{}, noEvent: true},
		{name: "metadata without content", have: []Change{put("f", 0, file("1"))}, change: []Change{{Path: "f", Base: 11, Node: touched(file("1")), SameContent: true}},
			want: []Outcome{{Code: Accepted, Version: 13}}, tree: map[string]Node{"f": touched(file("1"))}},
		{name: "symlink conflict", have: []Change{put("l", 0, symlink("1"))}, then: []Change{put("l", 11, symlink("2"))},
			change: []Change{put("l", 11, symlink("3"))}, want: []Outcome{{Code: Conflicted, Version: 12, Copy: copyOf("l", "c")}},
			tree: map[string]Node{"l": symlink("2"), copyOf("l", "c"): symlink("3")}},
		{name: "second copy of one second", have: []Change{put("f", 0, file("1")), put(copyOf("f", "c"), 0, file("old"))},
			change: []Change{put("f", 0, file("3"))}, want: []Outcome{{Code: Conflicted, Version: 11, Copy: copyOf("f", "c") + "-1"}},
			tree: map[string]Node{"f": file("1"), copyOf("f", "c"): file("old"), copyOf("f", "c") + "-1": file("3")}},
		{name: "directory metadata, stale: last wins", have: []Change{put("d", 0, dir())}, then: []Change{put("d", 11, touched(dir()))},
			change: []Change{put("d", 11, touched(touched(dir())))}, want: []Outcome{{Code: Accepted, Version: 13}},
			tree: map[string]Node{"d": touched(touched(dir()))}},
		{name: "root metadata", change: []Change{put("", 0, dir())}, want: []Outcome{{Code: Accepted, Version: 13}}, tree: map[string]Node{}},
		{name: "missing parents are made", change: []Change{put("d/e/f", 0, file("1"))}, want: []Outcome{{Code: Accepted, Version: 13}},
			tree: map[string]Node{"d": dir(), "d/e": dir(), "d/e/f": file("1")}},
		{name: "directory metadata does not bring it back", have: []Change{put("d", 0, dir())}, then: []Change{del("d", 11)},
			change: []Change{put("d", 11, touched(dir()))}, want: []Outcome{{Code: Superseded}}, tree: map[string]Node{}, noEvent: true},
		{name: "delete an empty directory whatever the base", have: []Change{put("d", 0, dir())}, then: []Change{put("d", 11, touched(dir()))},
			change: []Change{del("d", 11)}, want: []Outcome{{}}, tree: map[string]Node{}},
		{name: "delete a full directory", have: []Change{put("d/f", 0, file("1"))},
			change: []Change{del("d", 11)}, want: []Outcome{{Code: Superseded, Version: 11}}, tree: map[string]Node{"d": dir(), "d/f": file("1")}, noEvent: true},
		{name: "delete children first", have: []Change{put("d/f", 0, file("1"))},
			change: []Change{del("d/f", 11), del("d", 11)}, want: []Outcome{{}, {}}, tree: map[string]Node{}},
		{name: "file to directory", have: []Change{put("x", 0, file("1"))}, change: []Change{put("x", 11, dir()), put("x/f", 0, file("2"))},
			want: []Outcome{{Code: Accepted, Version: 13}, {Code: Accepted, Version: 13}}, tree: map[string]Node{"x": dir(), "x/f": file("2")}},
		{name: "file to directory, stale", have: []Change{put("x", 0, file("1"))}, then: []Change{put("x", 11, file("2"))},
			change: []Change{put("x", 11, dir()), put("x/f", 0, file("3"))},
			want:   []Outcome{{Code: Conflicted, Version: 12, Copy: copyOf("x", "c")}, {Code: Conflicted, Copy: copyOf("x", "c") + "/f"}},
			tree:   map[string]Node{"x": file("2"), copyOf("x", "c"): dir(), copyOf("x", "c") + "/f": file("3")}},
		{name: "directory to file", have: []Change{put("x/f", 0, file("1"))}, change: []Change{del("x/f", 11), put("x", 11, file("2"))},
			want: []Outcome{{}, {Code: Accepted, Version: 13}}, tree: map[string]Node{"x": file("2")}},
		{name: "directory to file, not empty", have: []Change{put("x/f", 0, file("1"))}, change: []Change{put("x", 11, file("2"))},
			want: []Outcome{{Code: Conflicted, Version: 11, Copy: copyOf("x", "c")}}, tree: map[string]Node{"x": dir(), "x/f": file("1"), copyOf("x", "c"): file("2")}},
		{name: "below what became a file", have: []Change{put("x/f", 0, file("1"))}, then: []Change{del("x/f", 11), put("x", 11, file("2"))},
			change: []Change{put("x/f", 11, file("3")), put("x/d/g", 0, file("4")), put("x/d", 0, dir())},
			want:   []Outcome{{Code: Conflicted, Copy: copyOf("x", "c") + "/f"}, {Code: Conflicted, Copy: copyOf("x", "c") + "/d/g"}, {Code: Superseded}},
			tree: map[string]Node{"x": file("2"), copyOf("x", "c"): dir(), copyOf("x", "c") + "/f": file("3"),
				copyOf("x", "c") + "/d": dir(), copyOf("x", "c") + "/d/g": file("4")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			policy, err := ParsePolicy(tc.policy)
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, policy)
			r.apply("a", tc.have...)
			r.apply("b", tc.then...)
			r.events = nil
			if got := r.apply("c", tc.change...); !slices.Equal(got, tc.want) {
				t.Errorf("outcomes %+v\nwant %+v", got, tc.want)
			}
			checkTree(t, r, tc.tree)
			if (len(r.events) == 0) != tc.noEvent {
				t.Errorf("events %+v", r.events)
			}
			for _, o := range tc.want {
				if n := r.get(o.Copy); o.Copy != "" && n.Version != 13 {
					t.Errorf("copy %q has version %d", o.Copy, n.Version)
				}
			}
		})
	}
}

func checkTree(t *testing.T, r *rig, want map[string]Node) {
	t.Helper()
	got := tree(t, r.store)
	var stats Stats
	for p, n := range got {
		w, ok := want[p]
		if !ok || !n.Equal(w) {
			t.Errorf("%q is %+v, want %+v", p, n, w)
		}
		switch n.Kind {
		case File:
			stats.Files++
			stats.Bytes += uint64(n.Size)
		case Dir:
			stats.Dirs++
		case Symlink:
			stats.Symlinks++
		}
	}
	for p := range want {
		if _, ok := got[p]; !ok {
			t.Errorf("%q is missing", p)
		}
	}
	s, err := ReadStats(r.store)
	if stats.Conflicts = s.Conflicts; err != nil || s != stats {
		t.Errorf("counters %+v, counted %+v, %v", s, stats, err)
	}
}

// TestRoot: whose mode and owner the root has. Each change is an entry of its own.
func TestRoot(t *testing.T) {
	root := func(mode uint32, mtime int64) Node {
		return Node{Kind: Dir, Mode: mode, UID: 33, GID: 33, MTime: mtime}
	}
	claim := func(base uint64, n Node) Change { return put("", base, n) }
	timeOnly := func(base uint64, n Node) Change { return Change{Base: base, Node: n, SameContent: true} }
	for _, policy := range []string{"keep-both", "newest", "prefer:c"} {
		for _, tc := range []struct {
			name    string
			before  []Change // by a, from entry 11 on
			change  Change   // by c
			want    OutcomeCode
			is      Node
			claimed bool
		}{
			{"the first claim", nil, claim(0, root(0o2775, 1)), Accepted, root(0o2775, 1), true},
			{"the second claim", []Change{claim(0, root(0o2775, 1))}, claim(0, root(0o755, 2)), Superseded, root(0o2775, 1), true},
			{"the same claim", []Change{claim(0, root(0o2775, 1))}, claim(0, root(0o2775, 1)), Same, root(0o2775, 1), true},
			{"a change of who knows it", []Change{claim(0, root(0o2775, 1))}, claim(11, root(0o755, 2)), Accepted, root(0o755, 2), true},
			{"a change of who knew it: the last wins", []Change{claim(0, root(0o2775, 1)), claim(11, root(0o700, 1))}, claim(11, root(0o755, 2)),
				Accepted, root(0o755, 2), true},
			{"an offer", nil, timeOnly(0, root(0o755, 1)), Accepted, root(0o755, 1), false},
			{"an offer after an offer", []Change{timeOnly(0, root(0o755, 1))}, timeOnly(0, root(0o700, 2)), Superseded, root(0o755, 2), false},
			{"a claim after an offer", []Change{timeOnly(0, root(0o755, 1))}, claim(0, root(0o2775, 2)), Accepted, root(0o2775, 2), true},
			{"a claim of what was offered", []Change{timeOnly(0, root(0o755, 1))}, claim(0, root(0o755, 1)), Accepted, root(0o755, 1), true},
			{"a time after a claim", []Change{timeOnly(0, root(0o755, 1)), claim(0, root(0o2775, 2))}, timeOnly(11, root(0o755, 3)),
				Superseded, root(0o2775, 3), true},
			{"a time", []Change{claim(0, root(0o2775, 1))}, timeOnly(11, root(0o2775, 3)), Accepted, root(0o2775, 3), true},
			{"an offered mode that is changed", []Change{timeOnly(0, root(0o755, 1))}, claim(11, root(0o700, 1)), Accepted, root(0o700, 1), true},
		} {
			t.Run(policy+"/"+tc.name, func(t *testing.T) {
				p, err := ParsePolicy(policy)
				if err != nil {
					t.Fatal(err)
				}
				r := newRig(t, p)
				for _, c := range tc.before {
					r.entry(Batch{Author: "a", Changes: []Change{c}})
				}
				out := r.entry(Batch{Author: "c", Changes: []Change{tc.change}})[0][0]
				got, _, err := Get(r.store, "")
				if err != nil || out.Code != tc.want || !got.Equal(tc.is) || out.Version != got.Version {
					t.Errorf("%v at version %d, root %+v, %v", out.Code, out.Version, got, err)
				}
				if set, claimed, err := RootClaimed(r.store); !set || claimed != tc.claimed || err != nil {
					t.Errorf("set %v, claimed %v, %v", set, claimed, err)
				}
			})
		}
	}
}

// TestOneEntry: versions are entry indexes, so a second command of one entry must not displace what an
// earlier one put: its author would not notice.
func TestOneEntry(t *testing.T) {
	r := newRig(t, Policy{Rule: RuleNewest})
	r.apply("a", put("f", 0, file("0")))
	outs := r.entry(
		Batch{Author: "a", Changes: []Change{put("f", 11, file("1"))}},
		Batch{Author: "b", Changes: []Change{put("f", 11, fileAt("2", 9999))}},
		Batch{Author: "c", Changes: []Change{put("f", 11, fileAt("1", 9999))}},
		Batch{Author: "d", Changes: []Change{put("f", 12, file("4"))}},
		Batch{Author: "e", Changes: []Change{del("f", 12)}},
	)
	codes := []OutcomeCode{Accepted, Conflicted, Superseded, Conflicted, Superseded}
	for i, o := range outs {
		if o[0].Code != codes[i] {
			t.Errorf("command %d: %v, want %v", i, o[0].Code, codes[i])
		}
	}
	if n := r.get("f"); !n.Equal(file("1")) {
		t.Errorf("f is %+v", n)
	}
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("x", 256)
	deep := strings.Repeat("d/", 2048) + "f"
	for _, c := range []Change{
		put("", 0, file("")), del("", 0), put("/a", 0, file("")), put("a/", 0, file("")), put("a//b", 0, file("")),
		put(".", 0, file("")), put("..", 0, file("")), put("a/../b", 0, file("")), put("a/.", 0, file("")), put("a\x00b", 0, file("")),
		put(long, 0, file("")), put(deep, 0, file("")), put(".lockstep", 0, dir()), put(".lockstep/root", 0, file("")),
		put("l", 0, symlink("")), put("l", 0, symlink("a\x00")), put("f", 0, Node{Kind: File, Mode: 0o10000}),
		{Path: "f", Node: file("abc"), Inline: []byte("ab")}, {Path: "d", Node: dir(), Inline: []byte{}},
	} {
		r := newRig(t, Policy{})
		if out := r.apply("a", c); out[0].Code != Refused || len(r.events) != 0 {
			t.Errorf("%.40q %v: %+v", c.Path, c.Node.Kind, out)
		}
	}
	r := newRig(t, Policy{})
	for _, p := range []string{"...", "a/.lockstep", ".lockstepx", "\xff\xfe", "a b\n", long[:255]} {
		if out := r.apply("a", put(p, 0, file(""))); out[0].Code != Accepted {
			t.Errorf("%q: %+v", p, out)
		}
	}
}

func TestEventsCarryContent(t *testing.T) {
	r := newRig(t, Policy{})
	r.apply("a", Change{Path: "f", Node: file("one"), Inline: []byte("one")})
	r.apply("b", Change{Path: "f", Node: file("two"), Inline: []byte("two")})
	if len(r.events) != 2 || string(r.events[0].Inline) != "one" || string(r.events[1].Inline) != "two" || r.events[1].Path == "f" {
		t.Errorf("%+v", r.events)
	}
	err := r.store.Scan(nil, nil, func(k, v []byte) error {
		if strings.Contains(string(v), "one") || strings.Contains(string(v), "two") {
			t.Errorf("content stored under %q", k)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMovedAsideSaysFrom: the loser's content may be on no disk but at the path that is about to change.
func TestMovedAsideSaysFrom(t *testing.T) {
	r := newRig(t, Policy{Rule: RuleNewest})
	r.apply("a", put("f", 0, file("1")))
	r.apply("b", put("f", 0, fileAt("2", 9999)))
	last := r.events[len(r.events)-2:]
	if last[0].From != "f" || last[0].Node.Hash != file("1").Hash || last[1].Path != "f" {
		t.Errorf("%+v", last)
	}
}

// TestBelowWhatWasDiverted: of one command, found while kinds were swapped, an entry is in the way of the next ones below it,
// also where the command's entries are put aside. Nothing ends up below what is no directory, where nobody would find it.
func TestBelowWhatWasDiverted(t *testing.T) {
	r := newRig(t, Policy{})
	r.apply("a", put("f", 0, file("blocks")))
	contents := []string{"1", "2", "3"}
	for i, o := range r.apply("b", put("f/x", 0, file("1")), put("f/x/y", 0, file("2")), put("f/x/y/z", 0, file("3"))) {
		if o.Code != Conflicted || !r.get(o.Copy).Equal(file(contents[i])) {
			t.Errorf("change %d: %+v, there: %+v", i, o, r.get(o.Copy))
		}
		for dir, ok := Parent(o.Copy); ok && dir != ""; dir, ok = Parent(dir) {
			if n := r.get(dir); n.Kind != Dir {
				t.Errorf("%s is below %s, which is %+v", o.Copy, dir, n)
			}
		}
	}
}

func TestConflictNames(t *testing.T) {
	long := strings.Repeat("ä", 127) // 254 bytes
	for _, tc := range []struct{ path, node, want string }{
		{"a/b.txt", "n1", "a/b.txt.conflict-n1-" + stamp},
		{"f", "a/b\x00", "f.conflict-a_b_-" + stamp},
		{long, "n1", strings.Repeat("ä", 113) + ".conflict-n1-" + stamp},
		{strings.Repeat("\xff", 255), "n1", strings.Repeat("\xff", 227) + ".conflict-n1-" + stamp},
	} {
		got := conflictName(tc.path, tc.node, testTime, 0)
		if got != tc.want || !ValidPath(got) {
			t.Errorf("%q: %q (%d), want %q", tc.path, got, len(got), tc.want)
		}
	}
}

func TestConflictLog(t *testing.T) {
	r := newRig(t, Policy{})
	r.apply("a", put("f", 0, file("1")))
	var cs []Change
	for range keptConflicts + 5 {
		cs = append(cs, put("f", 0, file("2")))
	}
	for c := range slices.Chunk(cs, 1000) {
		r.apply("b", c...)
	}
	var got []Conflict
	if err := Conflicts(r.store, func(c Conflict) error { got = append(got, c); return nil }); err != nil {
		t.Fatal(err)
	}
	if s, _ := ReadStats(r.store); len(got) != keptConflicts || s.Conflicts != keptConflicts+5 {
		t.Fatalf("%d kept, counters %+v", len(got), s)
	}
	want := Conflict{Path: "f", Copy: got[0].Copy, Node: "b", Time: testTime, Index: 12}
	if got[0] != want || !strings.HasSuffix(got[0].Copy, stamp+"-6") {
		t.Errorf("%+v", got[0])
	}
}
