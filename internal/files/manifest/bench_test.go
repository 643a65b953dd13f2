package manifest

import (
	"fmt"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// BenchmarkApply is one change of a batch of 512 on Pebble.
func BenchmarkApply(b *testing.B) {
	store, err := kv.OpenPebble(b.TempDir(), kv.PebbleOptions{})
	if err != nil {
		b.Fatal(err)
	}
	m := New(Config{})
	index, n := uint64(10), 0
	var batch Batch
	for b.Loop() {
		batch.Author = "n1"
		batch.Changes = append(batch.Changes, put(fmt.Sprintf("dir%d/file%d", n/100, n), 0, file("x")))
		if n++; len(batch.Changes) < 512 {
			continue
		}
		index++
		tx := store.Batch()
		if _, err := m.Apply(tx, machine.Command{Index: index, Payload: EncodeBatch(batch)}); err != nil {
			b.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
		m.Committed(index)
		batch.Changes = batch.Changes[:0]
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkDigest(b *testing.B) {
	r := newRig(b, Policy{})
	bigTree(b, r, 1000, 100)
	for b.Loop() {
		tx := r.store.Batch()
		if _, err := r.m.Digest(tx); err != nil {
			b.Fatal(err)
		}
		tx.Discard()
	}
}
