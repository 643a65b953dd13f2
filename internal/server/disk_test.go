package server

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
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
