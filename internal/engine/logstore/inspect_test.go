package logstore_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// inspect looks at a disk and requires that nothing of it changes.
func inspect(t *testing.T, d *logstoretest.Disk) *logstore.Inspection {
	t.Helper()
	before := d.Clone()
	in, err := logstore.Inspect(d)
	must(t, err)
	for _, s := range in.Segments {
		_, _, err := in.Frames(s.Name)
		must(t, err)
	}
	must(t, in.Close())
	was, is := before.Files(), d.Files()
	if !maps.EqualFunc(was, is, bytes.Equal) {
		t.Fatal("looking changed something")
	}
	return in
}

// agree compares what an inspection says with what a store has when it is opened.
func agree(t *testing.T, in *logstore.Inspection, o logstore.Options) {
	t.Helper()
	s, err := logstore.OpenSegments(o)
	if (err != nil) != (in.Refused != nil) {
		t.Fatalf("the inspection says %v, a start %v", in.Refused, err)
	}
	if err != nil {
		return
	}
	groups, err := s.Groups()
	must(t, err)
	var listed []uint64
	for _, g := range in.Groups {
		listed = append(listed, g.Group)
		l, found, err := s.Log(g.Group)
		if !found || errors.Is(err, logstore.ErrDamaged) != (g.Damaged != nil) {
			t.Fatalf("group %d: the inspection says %v, a start %v, %v", g.Group, g.Damaged, found, err)
		}
		if err != nil {
			continue
		}
		first, ferr := l.FirstIndex()
		last, lerr := l.LastIndex()
		term, terr := l.Term(last)
		hard, conf, herr := l.InitialState()
		must(t, errors.Join(ferr, lerr, terr, herr))
		if first != g.Start.Index+1 || (logstore.Position{Index: last, Term: term}) != g.Last || g.Bytes != l.Bytes(first) ||
			hard.GetVote() != g.Hard.Vote || hard.GetCommit() != max(g.Hard.Commit, g.Start.Index) || len(conf.GetVoters()) != g.Voters {
			t.Fatalf("group %d: the inspection says %+v, a start %d to %d of term %d, %v, %v", g.Group, g, first, last, term, hard, conf)
		}
	}
	if !slices.Equal(listed, groups) {
		t.Fatalf("the inspection lists %v, a start %v", listed, groups)
	}
	must(t, s.Close())
}

// What an inspection says of a log, sound or damaged anywhere, is what a start makes of it.
func TestInspectJudgesAsAStartDoes(t *testing.T) {
	rng := seeded(t)
	disk, o := filled(t, rng)
	names := slices.Sorted(maps.Keys(disk.Files()))
	damaged, refused := 0, 0
	for i := range 200 {
		d := disk.Clone()
		for range i % 12 {
			content := d.Files()[names[rng.IntN(len(names))]]
			content[rng.IntN(len(content))] ^= byte(1) << rng.IntN(8)
		}
		if i%20 == 19 { // no head is left
			for _, content := range d.Files() {
				content[8] ^= 1
			}
		}
		in := inspect(t, d)
		o.Disk = d
		agree(t, in, o)
		if in.Refused != nil {
			refused++
		}
		if slices.ContainsFunc(in.Groups, func(g logstore.Found) bool { return g.Damaged != nil }) {
			damaged++
		}
		if i == 0 && (damaged > 0 || refused > 0 || len(in.Problems) > 0 || len(in.Torn) > 0) {
			t.Fatalf("a sound log: %v, %v, %v", in.Refused, in.Problems, in.Torn)
		}
	}
	t.Logf("damaged %d, refused %d", damaged, refused)
	if damaged == 0 || refused == 0 {
		t.Error("not all kinds of damage were met")
	}
}

// A power cut in the middle of a write is no damage, and a frame that it left is said to be torn.
func TestInspectAfterPowerCuts(t *testing.T) {
	rng := seeded(t)
	torn := 0
	for range 300 {
		d := logstoretest.NewDisk(512, rng)
		o := small(d)
		s := openSegments(t, o)
		logstoretest.Make(t, s, 1)
		d.Arm(1 + rng.IntN(4))
		for i := range uint64(6) {
			data := string(bytes.Repeat([]byte("data"), 1+rng.IntN(3000)))
			if err := s.Write([]logstore.Write{{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(i+2, 1, data)}, HardState: logstoretest.Hard(1, 1, 1)}}); err != nil {
				break
			}
		}
		crashed := d.Crash()
		_ = s.Close() // its disk is gone
		in := inspect(t, crashed)
		if len(in.Problems) > 0 || in.Refused != nil || len(in.Groups) > 0 && in.Groups[0].Damaged != nil {
			t.Fatalf("a power cut: %v, %v, %+v", in.Refused, in.Problems, in.Groups)
		}
		torn += len(in.Torn)
		o.Disk = crashed
		agree(t, in, o)
	}
	t.Logf("%d torn", torn)
	if torn == 0 {
		t.Error("no cut tore a write")
	}
}

// Frames say what was written, and gaps between them show.
func TestFramesOfASegment(t *testing.T) {
	d := logstoretest.NewDisk(512, seeded(t))
	s := openSegments(t, small(d))
	logstoretest.Make(t, s, 7)
	for i := range uint64(3) {
		must(t, s.Write([]logstore.Write{{Group: 7, Entries: logstoretest.Entries(2+i, 2+i, 1+i), HardState: logstoretest.Hard(1+i, 5, 1+i)}}))
	}
	must(t, s.Compact(7, 2))
	must(t, s.Close())
	in, err := logstore.Inspect(d)
	must(t, err)
	current := in.Segments[0]
	frames, old, err := in.Frames(current.Name)
	must(t, err)
	must(t, in.Close())
	if current.Part != logstore.PartCurrent || current.Number != 1 || old != 0 || len(frames) < 5 {
		t.Fatalf("%+v, %d old, frames %+v", current, old, frames)
	}
	var entries []logstore.Position
	compacted := logstore.Position{}
	for _, f := range frames {
		if f.Damage != "" {
			t.Errorf("%+v", f)
		}
		for _, sec := range f.Sections {
			switch {
			case sec.Kind == "write" && sec.First.Index > 0 && sec.Last.Index >= sec.First.Index:
				entries = append(entries, sec.Last)
				if sec.Group != 7 || sec.Hard.Vote != 5 || sec.Hard.Term != sec.Last.Term {
					t.Errorf("%+v", sec)
				}
			case sec.Kind == "compaction":
				compacted = *sec.At
			}
		}
	}
	if want := []logstore.Position{{Index: 2, Term: 1}, {Index: 3, Term: 2}, {Index: 4, Term: 3}}; !slices.Equal(entries, want) {
		t.Errorf("entries %v, want %v", entries, want)
	}
	if want := (logstore.Position{Index: 2, Term: 1}); compacted != want {
		t.Errorf("compacted to %v, want %v", compacted, want)
	}

	hit := frames[2]
	d.Files()[current.Name][hit.Offset] ^= 1
	in, err = logstore.Inspect(d)
	must(t, err)
	frames, _, err = in.Frames(current.Name)
	must(t, err)
	must(t, in.Close())
	i := slices.IndexFunc(frames, func(f logstore.Frame) bool { return f.Kind == logstore.FrameUnreadable })
	if i < 0 || frames[i].Offset != hit.Offset || frames[i].Bytes != frames[i+1].Offset-hit.Offset {
		t.Errorf("a frame without a header: %+v", frames)
	}
	if len(in.Problems) != 1 || in.Problems[0].Segment != current.Name || in.Problems[0].Batch != hit.Batch || !slices.Equal(in.Problems[0].Groups, []uint64{7}) {
		t.Errorf("problems %+v", in.Problems)
	}
}

func TestReadDiskChangesNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := logstore.ReadDisk(filepath.Join(dir, "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("content"), 0o400))
	read := 0
	d, err := logstore.ReadDisk(dir, func(n int) error {
		if read += n; read > 7 {
			return context.Canceled
		}
		return nil
	})
	must(t, err)
	f, err := d.Open("a")
	must(t, err)
	p := make([]byte, 7)
	if n, err := f.ReadAt(p, 0); n != 7 || err != nil || string(p) != "content" {
		t.Errorf("read %q, %v", p[:n], err)
	}
	if _, err := f.ReadAt(p, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody stopped the second read: %v", err)
	}
	_, werr := f.WriteAt(p, 0)
	_, cerr := d.Create("b", 1, true)
	for what, err := range map[string]error{"write": werr, "write with sync": f.WriteSync(p, 0), "sync": f.Sync(), "create": cerr, "remove": d.Remove("a")} {
		if err == nil {
			t.Errorf("%s is allowed", what)
		}
	}
	must(t, errors.Join(f.Close(), d.Close()))
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left: %v, %v", names, err)
	}
}
