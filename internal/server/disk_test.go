package server

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

func TestJudge(t *testing.T) {
	const gib = 1 << 30
	full := &api.FullDisk{Why: "before"}
	noSpace := fmt.Errorf("make segment 7: %w", syscall.ENOSPC)
	for name, c := range map[string]struct {
		fs         fileSystem
		before     *api.FullDisk
		log, state error
		why        string // empty: there is room
	}{
		"the state knows better":         {fileSystem{free: 500 * gib, size: 900 * gib}, nil, nil, syscall.ENOSPC, "state store"},
		"plenty":                         {fileSystem{free: 500 * gib, size: 900 * gib}, nil, nil, nil, ""},
		"just enough":                    {fileSystem{free: floorMax, size: 900 * gib}, nil, nil, nil, ""},
		"a byte too little":              {fileSystem{free: floorMax - 1, size: 900 * gib}, nil, nil, nil, "free"},
		"of a small one a share":         {fileSystem{free: 2 << 20, size: 256 << 20}, nil, nil, nil, ""},
		"less than the share":            {fileSystem{free: 1 << 20, size: 256 << 20}, nil, nil, nil, "free"},
		"a little more is not enough":    {fileSystem{free: floorMax + 1, size: 900 * gib}, full, nil, nil, "free"},
		"half as much again is":          {fileSystem{free: floorMax * 3 / 2, size: 900 * gib}, full, nil, nil, ""},
		"the log knows better":           {fileSystem{free: 500 * gib, size: 900 * gib}, nil, noSpace, nil, "log"},
		"and as long as it says so":      {fileSystem{free: 500 * gib, size: 900 * gib}, full, noSpace, nil, "log"},
		"the state knows better (quota)": {fileSystem{free: 500 * gib, size: 900 * gib}, nil, nil, syscall.EDQUOT, "state store"},
	} {
		got := judge(c.fs, c.before, c.log, c.state)
		switch {
		case (got == nil) != (c.why == ""):
			t.Errorf("%s: %+v", name, got)
		case got != nil && (!strings.Contains(got.Why, c.why) || got.Free != c.fs.free || got.Needed < c.fs.free && c.log == nil && c.state == nil):
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What is said of a full disk names what is missing there: bytes only if it is bytes.
func TestWhatIsLacking(t *testing.T) {
	plenty := fileSystem{free: 10 << 30, size: 900 << 30}
	noInodes := plenty
	noInodes.noInodes = true
	little := fileSystem{free: 1 << 20, size: 900 << 30, noInodes: true}
	for name, c := range map[string]struct {
		fs         fileSystem
		log, state error
		lacks      string
		text, hint string
	}{
		"bytes":               {little, nil, nil, "", "has 1.0 MiB free and needs 48.0 MiB", "make room there"},
		"inodes of the log":   {noInodes, syscall.ENOSPC, nil, lacksInodes, "no inodes are left under /d", "remove files there"},
		"inodes of the state": {noInodes, nil, syscall.ENOSPC, lacksInodes, "no inodes are left under /d", "remove files there"},
		"a quota":             {plenty, nil, syscall.EDQUOT, lacksQuota, "the quota is used up under /d", "raise the quota"},
		"a quota, and inodes": {noInodes, syscall.EDQUOT, nil, lacksQuota, "the quota is used up under /d", "raise the quota"},
		"nobody knows":        {plenty, syscall.ENOSPC, nil, "", "although 10240.0 MiB is free", "make room there"},
	} {
		f := judge(c.fs, nil, c.log, c.state)
		if f == nil {
			t.Errorf("%s: there is room", name)
			continue
		}
		f.Path = "/d"
		w := fullWarning(api.Node{Name: "n1", Full: f})
		if f.Lacks != c.lacks || !strings.Contains(w.Text, c.text) || strings.Contains(w.Text, "needs") != (name == "bytes") || !strings.Contains(w.Hint, c.hint) {
			t.Errorf("%s: lacks %q: %s (%s)", name, f.Lacks, w.Text, w.Hint)
		}
	}
	if f := judge(noInodes, nil, nil, nil); f != nil {
		t.Errorf("full because of what a file system says of inodes, although nothing failed: %+v", f)
	}
}

// A node leaves in order, unless its disk is full or becomes so: what waits for room then does not keep it.
func TestTidyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{log: slog.New(slog.DiscardHandler), disk: &dataDisk{logs: &fakeLogs{}}}
		room := make(chan struct{})
		broken := errors.New("broken")
		steps := 0
		tidy := func() cleanup {
			var c cleanup
			c.add(func() error { steps++; return broken })
			c.add(func() error { <-room; return nil })
			return c
		}
		left := make(chan error, 1)
		leave := func(c cleanup) {
			n.tidy = c
			go func() { left <- n.tidyUp() }()
		}
		leave(tidy())
		<-time.After(time.Minute)
		select {
		case err := <-left:
			t.Fatalf("it left before things were in order: %v", err)
		default:
		}
		close(room)
		if err := <-left; !errors.Is(err, broken) || steps != 1 {
			t.Errorf("left with %v after %d steps", err, steps)
		}

		room = make(chan struct{})
		leave(tidy())
		<-time.After(time.Minute)
		n.disk.stateFull(syscall.ENOSPC)
		began := time.Now()
		if err := <-left; err != nil || steps != 1 || time.Since(began) > time.Second {
			t.Errorf("full meanwhile: left with %v after %v", err, time.Since(began))
		}
		var quick cleanup
		quick.add(func() error { steps++; return nil })
		leave(quick)
		if err := <-left; err != nil || steps != 1 {
			t.Errorf("full: left with %v after %d steps", err, steps)
		}
		n.disk, n.tidy = nil, cleanup{} // it was not opened
		if err := n.tidyUp(); err != nil {
			t.Error(err)
		}
		close(room)
	})
}

// fakeLogs is a log store that may be full.
type fakeLogs struct {
	full    error
	retried int
}

func (f *fakeLogs) Full() error { return f.full }
func (f *fakeLogs) Retry()      { f.retried++ }

func TestDataDisk(t *testing.T) {
	now := time.Unix(1000, 0)
	fs := map[string]fileSystem{"/d/log": {free: 1 << 40, size: 1 << 41}, "/d/state": {free: 1 << 40, size: 1 << 41}}
	logs := &fakeLogs{}
	var failed error
	d := &dataDisk{dirs: []string{"/d/log", "/d/state"}, now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler),
		logs: logs, fail: func(err error) { failed = err },
		statfs: func(dir string) (fileSystem, error) { return fs[dir], nil }}
	d.look()
	if d.Full() || d.Scarce() || d.report() != nil {
		t.Error("full although there is room")
	}
	logs.full = syscall.ENOSPC
	if !d.Full() || !d.Scarce() {
		t.Error("what the log knows is not known at once")
	}
	if f := d.report(); f == nil || f.Path != "/d" || !f.Since.Equal(now) {
		t.Errorf("report %+v", f)
	}
	now = now.Add(time.Minute)
	logs.full = nil
	fs["/d/state"] = fileSystem{free: 1, size: 1 << 41}
	d.look()
	if f := d.report(); f == nil || f.Free != 1 || now.Sub(f.Since) != time.Minute {
		t.Errorf("the fuller of two file systems does not count, or it is full since now: %+v", f)
	}
	fs["/d/state"] = fs["/d/log"]
	d.look()
	if d.Full() || d.report() != nil {
		t.Error("full although there is room again")
	}
	d.stateFull(syscall.ENOSPC)
	if !d.Full() {
		t.Error("a state store that waits is not full")
	}
	d.stateFull(nil)

	d.heard(7, true)
	d.heard(8, true)
	d.heard(7, false)
	if d.FullAt(7) || !d.FullAt(8) || !d.Scarce() || d.Full() {
		t.Error("what peers say is not what is known")
	}
	d.heard(8, false)
	if d.Scarce() {
		t.Error("scarce although nobody is full")
	}

	if failed != nil {
		t.Errorf("failed: %v", failed)
	}
	fs["/d/log"] = fileSystem{free: 1 << 40, size: 1 << 41, readOnly: true}
	if d.look(); !errors.Is(failed, syscall.EROFS) || !strings.Contains(failed.Error(), "/d/log") {
		t.Errorf("a read-only file system: %v", failed)
	}
}

// Each error of a disk names the directory and a way out of its own.
func TestStorageError(t *testing.T) {
	for errno, hint := range map[syscall.Errno]string{
		syscall.ENOSPC: "make room", syscall.EDQUOT: "make room", syscall.EROFS: "read-only", syscall.EIO: "replace", syscall.EBADF: "see to the disk",
	} {
		e := storageError(t.TempDir(), fmt.Errorf("write log: %w", errno))
		if !strings.Contains(e.Hint, hint) || !strings.Contains(e.Hint, e.Subject) || !strings.Contains(e.Why, errno.Error()) {
			t.Errorf("%v: %+v", errno, e)
		}
		if isFull(errno) != (e.Code == api.CodeFull) {
			t.Errorf("%v has code %s", errno, e.Code)
		}
	}
}
