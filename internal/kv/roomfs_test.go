package kv

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// pickyFS takes nothing for files of one kind.
type pickyFS struct {
	vfs.FS
	refused atomic.Pointer[string] // suffix of names
}

func (p *pickyFS) refuse(suffix string) { p.refused.Store(&suffix) }

func (p *pickyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(name, c)
	return &pickyFile{f, p, name}, err
}

type pickyFile struct {
	vfs.File
	fs   *pickyFS
	name string
}

func (f *pickyFile) Write(b []byte) (int, error) {
	if s := f.fs.refused.Load(); s != nil && *s != "" && strings.HasSuffix(f.name, *s) {
		return 0, syscall.ENOSPC
	}
	return f.File.Write(b)
}

// What a store says of the room on its disk: it is full while a write waits, whatever becomes of tables; and from a table
// that failed until a whole one is there, or until nobody has tried for a while.
func TestWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &pickyFS{FS: vfs.NewMem()}
		var full atomic.Bool
		var told atomic.Int64
		fs := newRoomFS(disk, false, func(err error) { full.Store(err != nil); told.Add(1) })
		fs.open.Store(true)
		defer fs.end()
		create := func(name string) vfs.File {
			f, err := fs.Create(name, "")
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		write := func(f vfs.File) error { _, err := f.Write([]byte("abc")); return err }
		says := func(want bool, when string) {
			t.Helper()
			if full.Load() != want || fs.full.Load() != want {
				t.Errorf("%s: full is %v", when, !want)
			}
		}
		whole := func(f vfs.File) {
			t.Helper()
			if err := write(f); err != nil {
				t.Fatal(err)
			}
			says(true, "a part of a table is written")
			if err := f.SyncData(); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		log, table := create("1.log"), create("1.sst")
		disk.refuse(".log")
		wrote := make(chan error)
		go func() { wrote <- write(log) }()
		<-time.After(time.Second)
		says(true, "a write waits")
		whole(table)
		says(true, "a table is written while a write waits")
		disk.refuse("")
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		says(false, "nothing waits")

		table = create("2.sst")
		disk.refuse(".sst")
		if err := write(table); err != syscall.ENOSPC {
			t.Errorf("a table waits: %v", err)
		}
		if err := table.SyncData(); err != nil { // as Pebble does before it gives a table up
			t.Error(err)
		}
		table.Close()
		says(true, "a table failed")
		disk.refuse("")
		if err := write(log); err != nil {
			t.Fatal(err)
		}
		says(true, "a table failed, and a log is written")
		whole(create("3.sst"))
		says(false, "a whole table is there")

		table = create("4.sst")
		slow := create("5.sst")
		disk.refuse(".sst")
		if err := write(table); err != syscall.ENOSPC {
			t.Errorf("a table waits: %v", err)
		}
		table.Close()
		<-time.After(3 * tableLapse)
		says(true, "another table is being written")
		slow.Close()
		<-time.After(tableLapse + time.Second)
		says(false, "nobody writes tables")
		if n := told.Load(); n != 6 {
			t.Errorf("told %d times of three changes and back", n)
		}
	})
}

// A store that does not wait for room fails, whatever there was no room for, and every call on it returns.
func TestPebbleNoWait(t *testing.T) {
	for _, suffix := range []string{".log", ".sst"} {
		t.Run(suffix, func(t *testing.T) {
			disk := &pickyFS{FS: vfs.NewMem()}
			failed := make(chan error, 8)
			s, err := OpenPebble("db", PebbleOptions{FS: disk, MemTableBytes: 64 << 10, NoWait: true, OnError: func(err error) { failed <- err },
				OnFull: func(error) { t.Error("it says that it is full") }})
			if err != nil {
				t.Fatal(err)
			}
			disk.refuse(suffix)
			value := make([]byte, 10_000)
			for i := 0; err == nil; i++ {
				if i == 10_000 {
					t.Fatal("it takes all")
				}
				b := s.Batch()
				if err = b.Set([]byte{byte(i >> 8), byte(i)}, value); err == nil {
					err = b.Commit()
				}
				b.Discard()
			}
			if !isFull(err) {
				t.Errorf("it fails with %v", err)
			}
			if err := <-failed; !isFull(err) {
				t.Errorf("told %v", err)
			}
			if err := s.Sync(); !isFull(err) {
				t.Errorf("sync: %v", err)
			}
			if _, _, err := s.Get([]byte{0, 0}); !isFull(err) {
				t.Errorf("get: %v", err)
			}
			if err := s.Close(); !isFull(err) {
				t.Errorf("close: %v", err)
			}
		})
	}
}
