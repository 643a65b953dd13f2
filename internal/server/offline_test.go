package server

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// damageLog flips a bit of one of a group's writes in the log of a node that is stopped.
func damageLog(t *testing.T, data, group string) {
	t.Helper()
	type place struct {
		file string
		at   uint64
	}
	var writes []place
	err := OfflineLog{Data: data}.Dump(t.Context(), api.LogFilter{Group: group}, func(api.LogDump) error { return nil }, func(seg *api.LogSegment) error {
		for _, frame := range seg.Frames {
			for _, s := range frame.Sections {
				if s.Kind == "write" && s.Group == group && frame.Kind == "batch" {
					writes = append(writes, place{filepath.Join(data, "log", seg.File), s.Offset + s.Bytes/2})
				}
			}
		}
		return nil
	})
	if err != nil || len(writes) < 3 {
		t.Fatalf("%d writes of %s, %v", len(writes), group, err)
	}
	p := writes[len(writes)/2]
	f, err := os.OpenFile(p.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], int64(p.at))
	b[0] ^= 4
	_, wrote := f.WriteAt(b[:], int64(p.at))
	if err := errors.Join(err, wrote, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestSoleVoterWithADamagedLog: of the only voter the state is sound when the log is not, and everything that is said leads
// back to it: nothing is lost.
func TestSoleVoterWithADamagedLog(t *testing.T) {
	s := startSealed(t)
	s.put("a")
	s.put("b")
	stopNode(t, s.node)
	damageLog(t, s.data, "control")
	damageLog(t, s.data, "web")

	v, err := OfflineLog{Data: s.data}.Verify(t.Context())
	if err != nil || v.Sound {
		t.Fatalf("%+v, %v", v, err)
	}
	const again = "lockstep group recover web --unsafe --yes-lose-data web"
	offline := "lockstep offline recover --data " + s.data + " --yes-lose-data n1"
	for group, way := range map[string]string{"control": offline, "web": again} {
		i := slices.IndexFunc(v.Groups, func(g api.LogGroup) bool { return g.Group == group })
		if i < 0 || !strings.Contains(v.Groups[i].Next, way) || strings.Contains(v.Groups[i].Next, "restore") {
			t.Errorf("%s: %+v", group, v.Groups)
		}
	}

	before := time.Now()
	_, err = upNode(t, s.data, "n1", "", slog.DiscardHandler)
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeDamage || !strings.Contains(e.Hint, offline) {
		t.Fatalf("the start: %v", err)
	}
	if took := time.Since(before); took >= joinPatience {
		t.Errorf("it waited %s for nobody", took)
	}
	out, err := OfflineRecover(t.Context(), s.data, "n1", false, slog.New(slog.DiscardHandler))
	if err != nil || !out.StateOnly || len(out.Others) != 0 {
		t.Fatalf("%+v, %v", out, err)
	}

	s.start()
	defer func() { stopNode(t, s.node) }()
	await(t, "the group's log is found damaged, and why it waits", func() bool {
		g, ok := s.ctl.state().GroupNamed("web")
		if !ok {
			return false
		}
		found, ok := s.suspected(g.ID)
		return ok && strings.Contains(found.hint(), again)
	})
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := 0
	for _, w := range st.Warnings {
		if !strings.Contains(w.Subject, "web") {
			continue
		}
		if strings.Contains(w.Hint, again) {
			said++
		}
		if strings.Contains(w.Hint, "by itself") || strings.Contains(w.Hint, "an election") {
			t.Errorf("%+v", w)
		}
	}
	if said == 0 {
		t.Errorf("no way out is told: %+v", st.Warnings)
	}
	if _, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web"}); err != nil {
		t.Fatal(err)
	}
	s.awaitReturn()
	if n := s.files(); n != s.made {
		t.Errorf("%d files of %d are left", n, s.made)
	}
}

// TestOlderLogUnderANewerState: an older copy of the log that is put back is not taken for the crash after an installation:
// the replica has forgotten what it voted for and acknowledged.
func TestOlderLogUnderANewerState(t *testing.T) {
	s := startSealed(t)
	s.put("a")
	stopNode(t, s.node)
	log, older := filepath.Join(s.data, "log"), filepath.Join(t.TempDir(), "log")
	if err := os.CopyFS(older, os.DirFS(log)); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.awaitRuns()
	s.put("b")
	s.put("c")
	stopNode(t, s.node)
	if err := errors.Join(os.RemoveAll(log), os.Rename(older, log)); err != nil {
		t.Fatal(err)
	}
	v, err := OfflineLog{Data: s.data}.Verify(t.Context())
	if err != nil || v.Sound {
		t.Fatalf("the log is called sound: %+v, %v", v, err)
	}
	for _, g := range v.Groups {
		if !strings.Contains(g.Damaged, "an older log") || g.Next == "" {
			t.Errorf("%+v", g)
		}
	}
	_, err = upNode(t, s.data, "n1", "", slog.DiscardHandler)
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeDamage || !strings.Contains(e.Hint, "offline recover") {
		t.Fatalf("the start: %v", err)
	}
	if out, err := OfflineRecover(t.Context(), s.data, "n1", false, slog.New(slog.DiscardHandler)); err != nil || !out.StateOnly {
		t.Fatalf("%+v, %v", out, err)
	}
	s.start()
	defer func() { stopNode(t, s.node) }()
	await(t, "the group's log is found damaged", func() bool {
		g, ok := s.ctl.state().GroupNamed("web")
		if !ok {
			return false
		}
		_, aside := s.suspected(g.ID)
		return aside
	})
	if _, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web"}); err != nil {
		t.Fatal(err)
	}
	s.awaitReturn()
	if n := s.files(); n != s.made {
		t.Errorf("%d files of %d are left", n, s.made)
	}
}
