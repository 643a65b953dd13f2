package machinetest_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
	"github.com/lockstep-sync/lockstep/internal/machine/machinetest"
)

// counter adds a command's byte to one of four counters; it keeps a cache and a digest memo, so that every
// check of the suite has something to look at.
type counter struct{ total uint64 }

func (c *counter) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	if len(cmd.Payload) != 2 || cmd.Payload[0] > 3 {
		return []byte("malformed"), nil
	}
	key := []byte{'c', cmd.Payload[0]}
	v, found, err := tx.Get(key)
	if err != nil {
		return nil, fmt.Errorf("read counter: %w", err)
	}
	n := uint64(cmd.Payload[1])
	if found {
		n += binary.BigEndian.Uint64(v)
	}
	c.total += uint64(cmd.Payload[1])
	if err := tx.Delete([]byte("memo")); err != nil {
		return nil, fmt.Errorf("drop memo: %w", err)
	}
	return fmt.Append(nil, c.total), tx.Set(key, binary.BigEndian.AppendUint64(nil, n))
}

func (c *counter) Committed(uint64) {}

func (c *counter) Restored(r kv.Reader, _ uint64) error {
	c.total = 0
	return r.Scan([]byte("c"), []byte("d"), func(_, v []byte) error {
		c.total += binary.BigEndian.Uint64(v)
		return nil
	})
}

func (c *counter) Digest(tx kv.Tx) (d machine.Digest, err error) {
	if v, found, err := tx.Get([]byte("memo")); err != nil || found {
		copy(d[:], v)
		return d, err
	}
	h := blake3.New()
	err = tx.Scan([]byte("c"), []byte("d"), func(k, v []byte) error {
		_, err := h.Write(append(append([]byte{}, k...), v...))
		return err
	})
	if err != nil {
		return d, err
	}
	h.Sum(d[:0])
	return d, tx.Set([]byte("memo"), d[:])
}

func TestSuiteAcceptsCorrectMachine(t *testing.T) {
	machinetest.Run(t, machinetest.Suite{
		New:  func() machine.Machine { return &counter{} },
		Memo: func(key []byte) bool { return string(key) == "memo" },
		Next: func(rng *rand.Rand, _ kv.Reader, _ uint64) []byte {
			return []byte{byte(rng.IntN(5)), byte(rng.IntN(4))}
		},
	})
}
