package sim

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// registers is a workload of swaps and reads on a few registers. Every swap writes a value of its own and
// returns the one before, so the history of each register is a chain; porcupine looks for an order that
// explains everything that clients saw.
type registers struct {
	w       *world
	gr      *group
	values  uint64
	history []porcupine.Operation
	open    []porcupine.Operation // writes that their clients gave up
	acked   []uint64              // values that must be there in the end
	local   []acceptedValue
}

// acceptedValue was only accepted: it is there in the end exactly if the entry at its position was committed.
type acceptedValue struct {
	value uint64
	at    core.Position
	tries int // more than one: an earlier try may have been committed, whatever became of this one
}

const registerCount = 4

// localRegister is written with AckLocal only; what was accepted may be lost, so nobody reasons about it.
const localRegister = registerCount

func newRegisters(gr *group) *registers { return &registers{w: gr.w, gr: gr} }

func (rs *registers) differ() differ { return nil }

func (rs *registers) machine(h *host) machine.Machine {
	return &spy{Machine: swapper{h.knows}, gr: rs.gr, who: h.id, op: func(p []byte) uint64 { return binary.BigEndian.Uint64(p[1:]) }}
}

// swapper executes swaps: a byte that names the register, 8 bytes of value. The result is the value before.
// It keeps every value that it has ever seen.
//
// From level 2 on there is a command more, a swap that is counted as well, in a record of a kind that level 1 does not
// know. Programs that do not know it refuse it, and so does below level 2 the one that does.
type swapper struct {
	knows uint64 // what the program knows
}

// counting marks, in a command's first byte, the swap of level 2.
const counting = 0x80

// refusal is the result of a command that nobody knows: no value has this length.
var refusal = [1]byte{0xff}

var countKey = []byte("n")

func (s swapper) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	if cmd.Payload[0]&counting == 0 {
		return s.swap(tx, cmd)
	}
	if s.knows < programNext || cmd.Level < programNext {
		return refusal[:], nil
	}
	n, _, err := tx.Get(countKey)
	if err == nil {
		err = tx.Set(countKey, binary.BigEndian.AppendUint64(nil, number(n)+1))
	}
	if err != nil {
		return nil, err
	}
	return s.swap(tx, cmd)
}

func registerKey(r byte) []byte { return []byte{'r', r} }

func valueKey(v uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'v'}, v) }

func (swapper) swap(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	key, value := registerKey(cmd.Payload[0]&^counting), cmd.Payload[1:9]
	old, _, err := tx.Get(key)
	if err == nil {
		err = tx.Set(key, value)
	}
	if err == nil {
		err = tx.Set(valueKey(binary.BigEndian.Uint64(value)), binary.BigEndian.AppendUint64(nil, cmd.Index))
	}
	return append([]byte{}, old...), err
}

func (swapper) Committed(uint64) {}

func (swapper) Restored(kv.Reader, uint64) error { return nil }

func (swapper) Digest(tx kv.Tx) (machine.Digest, error) {
	h := blake3.New()
	err := tx.Scan(nil, nil, func(k, v []byte) error {
		h.Write(k)
		h.Write(v)
		return nil
	})
	return machine.Digest(h.Sum(nil)), err
}

// seen is what a client asked and, once it is answered, saw.
type seen struct {
	register byte
	write    bool
	value    uint64 // written
}

func (rs *registers) next(c *client) request {
	r := rs.w.dice.work
	begun := rs.w.now
	if r.IntN(3) == 0 {
		reg := byte(r.IntN(registerCount))
		return request{read: func(view kv.Reader) {
			v, _, err := view.Get(registerKey(reg))
			must(err, "read register")
			rs.record(c, begun, seen{register: reg}, number(v))
		}}
	}
	rs.values++
	in := seen{register: byte(r.IntN(registerCount)), write: true, value: rs.values}
	ack := core.AckQuorum
	switch r.IntN(8) {
	case 0:
		ack = core.AckAll
	case 1:
		ack, in.register = core.AckLocal, localRegister
	}
	kind := in.register
	if ack != core.AckLocal && rs.newer() {
		kind |= counting
	}
	payload := binary.BigEndian.AppendUint64([]byte{kind}, in.value)
	payload = append(payload, make([]byte, r.IntN(200))...)
	return request{payload: payload, ack: ack, answered: func(a core.Answer, result []byte, tries int) {
		if a.Code == core.Accepted {
			rs.local = append(rs.local, acceptedValue{in.value, a.Position, tries})
			return
		}
		if kind&counting != 0 {
			if rs.w.report.Newer++; refused(result) {
				rs.w.report.NewerRefused++
				return
			}
		}
		rs.acked = append(rs.acked, in.value)
		if in.register == localRegister {
			rs.w.report.LocalAsQuorum++
		} else {
			rs.record(c, begun, in, number(result))
		}
	}, given: func() {
		if in.register != localRegister {
			rs.open = append(rs.open, porcupine.Operation{ClientId: int(c.id), Input: in, Call: begun})
		}
	}}
}

// newer says whether a client asks for the swap of level 2: often once the level was raised, and now and then, by
// mistake, before.
func (rs *registers) newer() bool {
	r := rs.w.dice.roll
	switch {
	case rs.w.cluster == nil:
		return false
	case rs.w.level() < programNext:
		return r.IntN(12) == 0
	}
	return r.IntN(3) == 0
}

func refused(result []byte) bool { return len(result) == len(refusal) }

func number(v []byte) uint64 {
	if len(v) == 0 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

func (rs *registers) record(c *client, begun int64, in seen, out uint64) {
	rs.history = append(rs.history, porcupine.Operation{
		ClientId: int(c.id), Input: in, Call: begun, Output: out, Return: rs.w.now,
	})
}

// model is one register: the state is its value.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, registerCount)
		for _, op := range history {
			r := op.Input.(seen).register
			parts[r] = append(parts[r], op)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		in := input.(seen)
		if in.write {
			return state == output, in.value
		}
		return state == output, state
	},
	Equal: func(a, b any) bool { return a == b },
}

func (rs *registers) turn() { rs.local = nil }

func (rs *registers) check(m *member) {
	view := m.rep.View()
	has := func(v uint64) bool {
		_, found, err := view.Get(valueKey(v))
		must(err, "read value")
		return found
	}
	for _, v := range rs.acked {
		if !has(v) {
			fail("value %d was acknowledged and is not there", v)
		}
	}
	for _, a := range rs.local {
		committed := rs.gr.ledger.fate(m, a.at)
		switch {
		case a.tries == 1 && committed != has(a.value):
			fail("value %d was accepted at %+v: that was committed: %v, the value is there: %v", a.value, a.at, committed, has(a.value))
		case committed && !has(a.value):
			fail("value %d was accepted at %+v, which was committed, and is not there", a.value, a.at)
		case committed:
			rs.w.report.AcceptedKept++
		default:
			rs.w.report.AcceptedLost++
		}
	}
	must(view.Close(), "close view")
	rs.closeOpen()
	if !porcupine.CheckOperations(model, rs.history) {
		fail("what clients saw of the registers is not linearizable: %s", rs.describe())
	}
}

// closeOpen adds the writes that were given up and yet executed: they end at the end of time, with the result that
// they had; one that was never executed has no part in the order.
func (rs *registers) closeOpen() {
	for _, op := range rs.open {
		if done, ok := rs.gr.ledger.executed[op.Input.(seen).value]; ok && !refused(done.result) {
			op.Output, op.Return = number(done.result), rs.w.now
			rs.history = append(rs.history, op)
		}
	}
}

// describe lists the shortest history that does not hold together, of one register.
func (rs *registers) describe() string {
	for _, part := range model.Partition(rs.history) {
		if porcupine.CheckOperations(model, part) {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
		n := 1
		for n < len(part) && porcupine.CheckOperations(model, part[:n]) {
			n++
		}
		out := ""
		for _, op := range part[max(0, n-8):n] {
			out += fmt.Sprintf("\n  client %d %d–%d ms: %+v saw %d", op.ClientId, op.Call/milli, op.Return/milli, op.Input, op.Output)
		}
		return out
	}
	return ""
}
