package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
)

// segmented is a log of so many segments, made while they are asked for, with as many frames each.
type segmented struct {
	head             api.LogDump
	segments, frames int
}

func (l segmented) segment(i int) api.LogSegment {
	s := api.LogSegment{File: fmt.Sprintf("<%d>.log", i), Segment: uint64(i), Part: "full", Frames: []api.LogFrame{}}
	for f := range l.frames {
		s.Frames = append(s.Frames, api.LogFrame{Offset: uint64(f), Kind: "batch", Batch: uint64(f + 1), Sections: []api.LogSection{
			{Kind: "entries", ID: 2, Group: "web & more", First: &api.LogPosition{Index: 1, Term: 1}, Last: &api.LogPosition{Index: 9, Term: 2}},
		}})
	}
	return s
}

func (l segmented) Dump(_ context.Context, _ api.LogFilter, begin func(api.LogDump) error, each func(*api.LogSegment) error) error {
	if err := begin(l.head); err != nil {
		return err
	}
	for i := range l.segments {
		s := l.segment(i)
		if err := each(&s); err != nil {
			return err
		}
	}
	return nil
}

func (segmented) Verify(context.Context) (api.LogVerified, error) { return api.LogVerified{}, nil }

func (l segmented) print(t *testing.T, w io.Writer, asJSON bool) {
	t.Helper()
	args := []string{"offline", "log", "dump", "--data", "d"}
	if asJSON {
		args = append(args, "--output", "json")
	}
	var errs bytes.Buffer
	status := Main(t.Context(), Env{Args: args, Stdout: w, Stderr: &errs, Getenv: func(string) string { return "" },
		OfflineLog: func(string, func(api.Progress)) OfflineLog { return l }})
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs.String())
	}
}

// TestLogDumpInPieces: what is printed segment by segment is what printing the whole would print.
func TestLogDumpInPieces(t *testing.T) {
	for _, head := range []api.LogDump{
		{Data: "d"}, {Data: "<d> " + noSegments, Refused: "why <not>", Unnamed: "the state & its store"},
	} {
		for segments := range 4 {
			for frames := range 3 {
				head.Segments = []api.LogSegment{}
				l := segmented{head, segments, frames}
				var got, want bytes.Buffer
				l.print(t, &got, true)
				whole := head
				for i := range segments {
					whole.Segments = append(whole.Segments, l.segment(i))
				}
				if err := writeJSON(&want, whole); err != nil {
					t.Fatal(err)
				}
				if got.String() != want.String() {
					t.Errorf("%d segments of %d frames:\n%s\nin pieces:\n%s", segments, frames, want.String(), got.String())
				}
			}
		}
	}
}

// watermark notes how large the heap is when something is written, every now and then.
type watermark struct {
	written, next, peak uint64
}

func (w *watermark) Write(b []byte) (int, error) {
	if w.written += uint64(len(b)); w.written >= w.next {
		w.next = w.written + 4<<20
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.peak = max(w.peak, m.HeapAlloc)
	}
	return len(b), nil
}

// TestLogDumpOfAnySize: however long the log is, about a segment of it is in memory.
func TestLogDumpOfAnySize(t *testing.T) {
	const most = 16 << 20
	for _, asJSON := range []bool{false, true} {
		runtime.GC()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		w := &watermark{}
		segmented{api.LogDump{Data: "d", Segments: []api.LogSegment{}}, 200, 1000}.print(t, w, asJSON)
		grown := w.peak - min(w.peak, before.HeapAlloc)
		t.Logf("json %v: %d MiB were written, %d in memory", asJSON, w.written>>20, grown>>20)
		if grown > most || w.written < most/2 {
			t.Errorf("json %v: %d bytes in memory for %d written, at most %d are fine", asJSON, grown, w.written, most)
		}
	}
}
