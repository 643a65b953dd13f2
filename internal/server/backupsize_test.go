package server

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// writeBackup makes a backup of one group, "web", with so many small files, all different.
func writeBackup(t *testing.T, path string, files int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := kv.OpenPebble(t.TempDir(), kv.PebbleOptions{})
	must(err)
	defer store.Close()
	rep, err := replica.Open(store, manifest.New(manifest.Config{}))
	must(err)
	conf := &raftpb.ConfState{Voters: []uint64{1}}
	must(rep.InitLine(&raftpb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: conf}, replica.Line{History: [16]byte{7}}))
	f, err := os.Create(path)
	must(err)
	buffer := bufio.NewWriterSize(f, 1<<20)
	out, err := backup.NewWriter(buffer, backup.Header{Node: "n1", Groups: []string{"web"}}, nil)
	must(err)
	index := uint64(1)
	for at := 0; at < files; {
		batch := manifest.Batch{Author: "n1"}
		for range min(2000, files-at) {
			text := fmt.Sprintf("content of file %d", at)
			hash := blake3.Sum256([]byte(text))
			batch.Changes = append(batch.Changes, manifest.Change{Path: fmt.Sprintf("d%03d/f%06d", at%500, at),
				Node: manifest.Node{Kind: manifest.File, Mode: 0o644, Size: int64(len(text)), Hash: hash}})
			_, err := out.Content(backup.Hash(hash), uint64(len(text)), strings.NewReader(text))
			must(err)
			at++
		}
		index++
		p := core.Proposal{Client: [16]byte{1}, Seq: index, Payload: manifest.EncodeBatch(batch)}
		b := core.Batch{Proposer: 1, ID: index, Time: 1, Proposals: []core.Proposal{p}}
		_, err := rep.Apply([]*raftpb.Entry{{Index: proto.Uint64(index), Term: proto.Uint64(1), Data: core.EncodeBatch(&b)}}, nil)
		must(err)
	}
	view := rep.StateView()
	defer view.Close()
	machine, err := rep.MachineView(view)
	must(err)
	stats, err := manifest.ReadStats(machine)
	must(err)
	tree, err := manifest.TreeDigest(machine)
	must(err)
	history := rep.Line().History
	must(out.Part(backup.Part{Kind: backup.PartState, Group: "web", Tree: backup.Hash(tree), Files: stats.Files, Bytes: stats.Bytes,
		Position: backup.Position{History: hex.EncodeToString(history[:]), Term: 1, Index: index}},
		func(w io.Writer) error { return rep.WriteSnapshot(view, w) }))
	_, err = out.Finish()
	must(err)
	must(buffer.Flush())
	must(f.Close())
}

// heapPeak is how much more was live on the heap at once while do ran than before, in bytes, as the collections found it, of
// which there are many; garbage does not count: how much of that there is depends on how busy the machine is.
func heapPeak(do func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	read := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	runtime.GC()
	before, peak := read(), uint64(0)
	stop := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		t := time.NewTicker(2 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				peak = max(peak, read())
			case <-stop:
				return
			}
		}
	})
	do()
	close(stop)
	sampling.Wait()
	return peak - min(peak, before)
}

// TestBackupOfAnySizeIsReadInTheSameMemory: to verify a backup, to look into it and to send it takes a fixed amount of
// memory, not so much a file, and leaves nothing in the directory for temporary files.
func TestBackupOfAnySizeIsReadInTheSameMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a backup of 200,000 files")
	}
	const files, most = 200_000, 35 << 20 // 25 to 29 MiB are live; with the contents' names in memory 40 to 46
	path := filepath.Join(t.TempDir(), "backup")
	writeBackup(t, path, files)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	f := BackupFile{Path: path}
	for name, do := range map[string]func() error{
		"verify": func() error {
			info, err := f.Verify(t.Context())
			if err == nil && (len(info.Groups) != 1 || info.Groups[0].Files != files || info.Contents != files) {
				err = fmt.Errorf("%+v", info)
			}
			return err
		},
		"list": func() error {
			entries, err := f.List(t.Context(), "web", "d007")
			if err == nil && len(entries) != files/500 {
				err = fmt.Errorf("%d entries", len(entries))
			}
			return err
		},
		"send": func() error {
			n := 0
			r, w := io.Pipe()
			var sending sync.WaitGroup
			sending.Go(func() { w.CloseWithError(f.Send(t.Context(), "web", w)) })
			err := backup.ReadFragment(r, backup.Handler{Seen: received(t.TempDir()), Content: func(backup.Hash, uint64, io.Reader) error { n++; return nil }})
			r.CloseWithError(err)
			sending.Wait()
			if err == nil && n != files {
				err = fmt.Errorf("%d contents", n)
			}
			return err
		},
	} {
		var err error
		began := time.Now()
		peak := heapPeak(func() { err = do() })
		for range 2 { // what is allocated while the collector marks counts as live, which on a busy machine is much
			if err == nil && peak > most {
				peak = heapPeak(func() { err = do() })
			}
		}
		t.Logf("%s: %d MiB, %v", name, peak>>20, time.Since(began).Round(time.Millisecond))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if peak > most {
			t.Errorf("%s: the heap grew by %d MiB", name, peak>>20)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestBackupOfAnySizeIsWrittenInTheSameMemory: neither the member that sends a group nor the node that writes the file keeps
// the names of contents in memory.
func TestBackupOfAnySizeIsWrittenInTheSameMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 250,000 contents")
	}
	const contents, most = 250_000, 20 << 20
	t.Setenv("TMPDIR", t.TempDir())
	write := func(out *backup.Writer) error {
		for i := range uint64(contents + 1000) {
			text := binary.BigEndian.AppendUint64(nil, i%contents) // the first are there when they come again
			if complete, err := out.Content(blake3.Sum256(text), uint64(len(text)), bytes.NewReader(text)); err != nil || !complete {
				return fmt.Errorf("content %d: %v, %w", i, complete, err)
			}
		}
		return out.EndGroup()
	}
	var index backup.Index
	peak := heapPeak(func() {
		r, w := io.Pipe()
		sent := make(chan error, 1)
		go func() {
			buffer := bufio.NewWriterSize(w, 1<<20)
			err := remembering("send", func(seen backup.Set) error { return write(backup.NewFragment(buffer, seen)) })
			sent <- errors.Join(err, buffer.Flush(), w.Close())
		}()
		err := remembering("write", func(seen backup.Set) error {
			out, err := backup.NewWriter(io.Discard, backup.Header{}, seen)
			if err == nil {
				err = out.Forward(bufio.NewReaderSize(r, 1<<20))
			}
			if err == nil {
				index, err = out.Finish()
			}
			return err
		})
		if err := errors.Join(err, <-sent); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d MiB for %d contents", peak>>20, contents)
	if index.Contents != contents {
		t.Errorf("%d contents in the file, %d were written", index.Contents, contents)
	}
	if peak > most {
		t.Errorf("%d MiB, at most %d are fine", peak>>20, most>>20)
	}
}
