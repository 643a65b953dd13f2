package sim

import (
	"bytes"
	"errors"
	"io"
	"net"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// differ is what a machine's differences are found with; nil: it has none.
type differ interface {
	ServeDiff(view kv.Reader, rw io.ReadWriter) error
	FetchDiff(local kv.Reader, rw io.ReadWriter, tx replica.Writer) error
}

// transfer is a whole state on its way: at the source's position when it was begun.
type transfer struct {
	data   []byte // a snapshot; with a differ the engine's part of one
	view   kv.Reader
	differ differ
	budget int // bytes of the conversation after which the connection breaks
	close  func() error
}

func (m *member) begin() *transfer { return begin(m.h, m.gr, m.rep) }

// begin takes a view of a replica's state, to be installed elsewhere; now and then the connection will break.
func begin(h *host, gr *group, rep *replica.Replica) *transfer {
	view := rep.StateView()
	t := &transfer{budget: -1, close: view.Close}
	r := h.w.dice.net
	var out bytes.Buffer
	if d := gr.work.differ(); d != nil && h.w.shape.differ {
		state, err := rep.MachineView(view)
		must(err, "view machine")
		must(rep.WriteEngineState(view, &out), "write engine's state")
		t.view, t.differ = state, d
	} else {
		must(rep.WriteSnapshot(view, &out), "write snapshot")
	}
	t.data = out.Bytes()
	if r.IntN(10) == 0 {
		switch at := r.IntN(len(t.data)); {
		case t.differ != nil && r.IntN(2) == 0:
			t.budget = r.IntN(2000)
		case r.IntN(2) == 0 || t.differ != nil:
			t.data = t.data[:at]
		default:
			t.data = bytes.Clone(t.data)
			t.data[at] ^= 1 << r.IntN(8) // what no cipher or checksum below has seen
		}
	}
	return t
}

var errBroken = errors.New("the connection breaks")

// restore installs the state in rep, on h; false means that it did not arrive whole, or is not for h's program.
func (t *transfer) restore(h *host, rep *replica.Replica) bool {
	var err error
	if t.differ == nil {
		err = rep.Restore(bytes.NewReader(t.data))
	} else {
		err = rep.RestoreDiff(bytes.NewReader(t.data), t.converse)
	}
	if h.unknown(err) {
		return false
	}
	if err != nil && !errors.Is(err, replica.ErrSnapshot) && !errors.Is(err, errBroken) {
		must(err, "restore")
	}
	h.fits(rep)
	return err == nil
}

// converse runs both ends; they alternate strictly, so nothing depends on how the goroutine is scheduled.
func (t *transfer) converse(local kv.Reader, tx replica.Writer) error {
	here, there := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = t.differ.ServeDiff(t.view, there) // the learner has its error
		there.Close()
	}()
	err := t.differ.FetchDiff(local, &fragile{here, t.budget}, tx)
	here.Close()
	<-served
	if err != nil && t.budget >= 0 {
		return errBroken
	}
	return err
}

// fragile breaks after a number of bytes; below 0 it never does.
type fragile struct {
	io.ReadWriter
	left int
}

func (f *fragile) Read(p []byte) (int, error) {
	if f.left < 0 {
		return f.ReadWriter.Read(p)
	}
	n, err := f.ReadWriter.Read(p[:min(len(p), f.left)])
	if f.left -= n; f.left <= 0 {
		return n, errBroken
	}
	return n, err
}

// offer moves a snapshot of the present state to a follower. Raft hears of the end once.
func (m *member) offer(msg *raftpb.Message) {
	to, w := msg.GetTo(), m.h.w
	m.snapshots++
	number := m.snapshots
	m.offers[to] = number
	ended := func(ok bool) {
		if m.offers[to] == number {
			delete(m.offers, to)
			m.g.SnapshotSent(to, ok)
		}
	}
	m.later(second+spread(w.dice.net, second), func() { ended(false) })
	dst := m.gr.member(to)
	if dst == nil {
		return
	}
	t := m.begin()
	w.net.carry(m.h.id, dst.h.id, spread(w.dice.net, 50*milli), func(bool) {
		dst.do(func() {
			dst.install(msg, t, func(ok bool) {
				w.net.carry(dst.h.id, m.h.id, 0, func(bool) { m.do(func() { ended(ok) }) })
			})
		})
	})
}

// install replaces the state between two batches of entries and then lets raft see the message.
func (m *member) install(msg *raftpb.Message, t *transfer, done func(ok bool)) {
	w := m.h.w
	if m.h.full {
		done(false)
		return
	}
	m.jobs.add(func(next func()) {
		ok := t.restore(m.h, m.rep)
		if ok {
			m.cutAll()
		}
		if ok && !w.over && w.dice.disk.IntN(8) == 0 {
			w.after(0, func() { w.nemesis.crash(w, m.h, milli) })
		}
		m.later(spread(w.dice.disk, milli), func() {
			if ok {
				w.report.Snapshots++
				m.gr.ledger.compare(m.String(), m.rep)
				own := proto.CloneOf(msg)
				own.Snapshot.Metadata = m.rep.SnapshotMeta()
				_ = m.g.Receive(own) // refused: from a member that is none any more
			}
			done(ok)
			next()
		})
	})
}
