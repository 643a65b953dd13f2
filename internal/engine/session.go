package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// MethodPropose is the transport method under which ServePropose is registered.
const MethodPropose = "engine.propose"

// attemptPatience bounds one attempt: the next may ask another node. Trying again is safe, see Session. A node that is asked
// without knowing that it leads is given guessPatience, and that much more with each round: if it does not lead, it says so
// at once.
const (
	attemptPatience = 15 * time.Second
	guessPatience   = time.Second
)

// maxOutstanding bounds how far a session's sequence numbers may run ahead of the lowest that is not answered, not only
// how many are in flight: replicas that have more results above a number than they remember forget that number's
// place, and a write that is stuck there could no longer be executed.
const maxOutstanding = 1024

// Members tells a session where the group's voters live.
type Members interface {
	// Voters lists the nodes of the group's voters, this node included if it is one.
	Voters() []uint64
}

// Session submits writes to a group from any node and has each executed exactly once: a write whose fate is
// unknown (its leader died, the connection broke) is sent again under the same sequence number, and a replica
// that has executed it answers with the stored result (RIFL, Lee et al., SOSP 2015).
type Session struct {
	eng     *Engine
	group   uint64
	members Members
	client  [16]byte
	risen   *signal // broadcast when the window opens

	mu     sync.Mutex
	next   uint64              // at most floor+maxOutstanding
	floor  uint64              // every sequence number below it has its answer
	done   map[uint64]struct{} // answered ones above floor
	leader uint64              // node that decided about a write last, or was named as the leader since; 0: not known
	mute   uint64              // node that gave no answer when it was asked last, or none that says anything
}

// NewSession starts a session; client must be unique to it (random).
func (e *Engine) NewSession(group uint64, members Members, client [16]byte) *Session {
	return &Session{
		eng: e, group: group, members: members, client: client,
		risen: newSignal(), next: 1, floor: 1, done: map[uint64]struct{}{},
	}
}

// ErrSessionExpired: the replicas have forgotten the session; whether the write was executed is not known.
var ErrSessionExpired = errors.New("engine: session expired, the write's fate is unknown")

// Answer is what a Session reports of a write.
type Answer struct {
	Code core.Code // Accepted, Committed, CommittedAll or CommittedQuorumOnly
	// Position is of the log of History, the leader's that answered: over a fork that may be another one than when the
	// write was submitted.
	Position core.Position
	History  [16]byte
	Place    uint32   // in the entry at Position, for Accepted
	Set      uint64   // version of the in-sync set, for CommittedAll
	Missing  []uint64 // replicas that are not known to have it, for CommittedQuorumOnly
	Result   []byte   // of the machine; none for Accepted
}

// Backlog is the number of writes in flight.
func (s *Session) Backlog() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.next-s.floor) - len(s.done)
}

// Propose submits payload and retries until it has an answer or ctx ends; then the error wraps ctx's and the
// write's fate is unknown. ErrFull: it was not taken.
func (s *Session) Propose(ctx context.Context, ack core.Ack, payload []byte) (Answer, error) {
	return s.submit(ctx, core.Proposal{Ack: ack, Payload: payload})
}

// Probe writes an entry that changes nothing, and so finds out how writes are answered.
func (s *Session) Probe(ctx context.Context, ack core.Ack) (Answer, error) {
	return s.submit(ctx, core.Proposal{Ack: ack, Payload: replica.EncodeProbe(), Engine: true})
}

func (s *Session) submit(ctx context.Context, p core.Proposal) (Answer, error) {
	seq, err := s.begin(ctx)
	if err != nil {
		return Answer{}, fmt.Errorf("engine: group %d: write waits for earlier ones: %w", s.group, err)
	}
	defer s.finish(seq)

	var pause backoff
	open := false // an earlier attempt may have been taken
	for try := 0; ; try++ {
		p.Client, p.Seq, p.Floor = s.client, seq, s.answered()
		a, err := s.attempt(ctx, p, try)
		switch {
		case err == nil && decided(a.Code):
			return s.accept(a)
		case err == nil && a.Code == core.Full && !open:
			return Answer{}, fmt.Errorf("engine: write to group %d not taken: %w", s.group, ErrFull)
		}
		open = open || err != nil || a.Code == core.Unknown
		if ctx.Err() != nil {
			return Answer{}, fmt.Errorf("engine: group %d: no answer to the write: %w", s.group, ctx.Err())
		}
		pause.wait(ctx, s.leaderNews())
	}
}

func decided(c core.Code) bool {
	switch c {
	case core.Accepted, core.Committed, core.CommittedAll, core.CommittedQuorumOnly:
		return true
	}
	return false
}

func (s *Session) accept(a served) (Answer, error) {
	out := Answer{Code: a.Code, Position: a.Position, History: a.history, Place: a.Place, Set: a.Set, Missing: a.Missing}
	if a.Code == core.Accepted {
		return out, nil
	}
	r, err := replica.DecodeResult(a.Result)
	if err != nil {
		return Answer{}, fmt.Errorf("engine: group %d: %w", s.group, err)
	}
	if r.Expired {
		return Answer{}, ErrSessionExpired
	}
	out.Result = r.Payload
	return out, nil
}

// attempt asks the leader as far as it is known: whom this node's own replica takes for it, then the last one that
// decided about a write, then the voters in turn. Who answers and decides nothing is passed over: a replica that has
// stopped answers at once, and for ever. It ends when another leader is found: the one that was asked may be cut off, which the
// network notices later.
func (s *Session) attempt(ctx context.Context, p core.Proposal, try int) (a served, err error) {
	reign := s.eng.reignOver(s.group) // before the leader is picked
	node, patience := s.pick(try)
	if node == 0 {
		return served{Answer: core.Answer{Code: core.NotLeader}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if node == s.eng.cfg.Node {
		g, ok := s.eng.Group(s.group)
		if !ok {
			return served{Answer: core.Answer{Code: core.NotLeader}}, nil
		}
		a = g.serve(ctx, p)
	} else {
		defer context.AfterFunc(reign, cancel)()
		reply, err := s.eng.cfg.Transport.Call(ctx, node, MethodPropose, encodePropose(wireGroup(s.group, s.eng.lineOf(s.group).History), p))
		if err != nil {
			s.passOver(node)
			return served{}, err
		}
		if a, err = decodeAnswer(reply); err != nil {
			return served{}, err
		}
	}
	s.answeredBy(node, a)
	return a, nil
}

// answeredBy notes whom to ask next, after what a node said.
func (s *Session) answeredBy(node uint64, a served) {
	switch {
	case a.Code == core.NotLeader:
		s.setLeader(a.node)
	case decided(a.Code) || a.Code == core.Full:
		s.setLeader(node)
	default: // it may lead and be busy, or its replica may be finished, or doubtful: others say who leads
		s.passOver(node)
	}
}

// pick returns the node to ask, and for how long.
func (s *Session) pick(try int) (node uint64, patience time.Duration) {
	if g, ok := s.eng.Group(s.group); ok {
		if n, ok := g.NodeOf(g.Core().Leader); ok && g.Core().Leader != 0 {
			return n, attemptPatience
		}
	}
	s.mu.Lock()
	leader, mute := s.leader, s.mute
	s.mu.Unlock()
	if leader != 0 {
		return leader, attemptPatience
	}
	voters := s.members.Voters()
	if len(voters) == 0 {
		return 0, 0
	}
	if len(voters) == 1 {
		return voters[0], attemptPatience
	}
	node = voters[try%len(voters)]
	if node == mute {
		node = voters[(try+1)%len(voters)]
	}
	return node, min(guessPatience*time.Duration(1+try/len(voters)), attemptPatience)
}

func (s *Session) setLeader(node uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leader, s.mute = node, 0
}

// passOver notes that a node gave no answer, or none that decides; it is asked again after another one.
func (s *Session) passOver(node uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leader, s.mute = 0, node
}

// leaderNews fires when this node's replica hears of another leader.
func (s *Session) leaderNews() <-chan struct{} {
	if g, ok := s.eng.Group(s.group); ok {
		return g.changed.wait()
	}
	return nil
}

// begin takes the next sequence number, as soon as the window is open; else ctx's error.
func (s *Session) begin(ctx context.Context) (uint64, error) {
	for {
		risen := s.risen.wait()
		if seq, ok := s.take(); ok {
			return seq, nil
		}
		select {
		case <-risen:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (s *Session) take() (seq uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next-s.floor >= maxOutstanding {
		return 0, false
	}
	s.next++
	return s.next - 1, true
}

func (s *Session) finish(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[seq] = struct{}{}
	full := s.next-s.floor >= maxOutstanding
	for {
		if _, ok := s.done[s.floor]; !ok {
			break
		}
		delete(s.done, s.floor)
		s.floor++
	}
	if full && s.next-s.floor < maxOutstanding {
		s.risen.broadcast()
	}
}

func (s *Session) answered() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.floor
}

// backoff waits a little longer each time: 5 ms to 100 ms.
type backoff struct{ d time.Duration }

func (b *backoff) wait(ctx context.Context, news <-chan struct{}) {
	b.d = min(max(2*b.d, 5*time.Millisecond), 100*time.Millisecond)
	t := time.NewTimer(b.d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-news:
	case <-ctx.Done():
	}
}

// ServePropose answers MethodPropose: a proposal that another node's session sends here.
func (e *Engine) ServePropose(ctx context.Context, from uint64, req []byte) ([]byte, error) {
	wire, p, err := decodePropose(req)
	if err != nil {
		return nil, err
	}
	group, tag := splitWire(wire)
	g, ok := e.Group(group)
	if !ok {
		return served{Answer: core.Answer{Code: core.NotLeader}}.encode(), nil
	}
	if line := g.Line(); !ours(tag, line.History) {
		e.tell(from, group, line)
		return nil, ErrOtherHistory
	}
	return g.serve(ctx, p).encode(), nil
}

// served is a replica's answer to a proposal of a session.
type served struct {
	core.Answer
	node    uint64   // of the leader, for NotLeader
	history [16]byte // that Position is of; a running replica with a state keeps its history
}

func (g *Group) serve(ctx context.Context, p core.Proposal) served {
	a := served{Answer: g.Propose(ctx, p), history: g.Line().History}
	a.node, _ = g.NodeOf(a.Leader)
	return a
}

var errShortMessage = errors.New("engine: message too short")

// A proposal on the wire: group with history u64 (wireGroup), ack u8 (plus wireEngine if it is the engine's own),
// client 16 B, seq u64, floor u64, payload.
const (
	proposeHeader = 8 + 1 + 16 + 8 + 8
	wireEngine    = 0x80
)

func encodePropose(group uint64, p core.Proposal) []byte {
	b := make([]byte, 0, proposeHeader+len(p.Payload))
	b = binary.BigEndian.AppendUint64(b, group)
	ack := byte(p.Ack)
	if p.Engine {
		ack |= wireEngine
	}
	b = append(b, ack)
	b = append(b, p.Client[:]...)
	b = binary.BigEndian.AppendUint64(b, p.Seq)
	b = binary.BigEndian.AppendUint64(b, p.Floor)
	return append(b, p.Payload...)
}

func decodePropose(b []byte) (group uint64, p core.Proposal, err error) {
	if len(b) < proposeHeader {
		return 0, p, errShortMessage
	}
	group = binary.BigEndian.Uint64(b)
	p.Ack, p.Engine = core.Ack(b[8]&^wireEngine), b[8]&wireEngine != 0
	if p.Ack > core.AckAll {
		return 0, p, fmt.Errorf("engine: unknown ack %d", b[8])
	}
	copy(p.Client[:], b[9:])
	p.Seq = binary.BigEndian.Uint64(b[25:])
	p.Floor = binary.BigEndian.Uint64(b[33:])
	p.Payload = b[proposeHeader:]
	return group, p, nil
}

// An answer on the wire: code u8, term u64, index u64, leader node u64, place u32, set u64, history 16 B, number of missing
// replicas u16, each u64, result.
const answerHeader = 1 + 8 + 8 + 8 + 4 + 8 + 16 + 2

func (a served) encode() []byte {
	b := make([]byte, 0, answerHeader+8*len(a.Missing)+len(a.Result))
	b = append(b, byte(a.Code))
	b = binary.BigEndian.AppendUint64(b, a.Position.Term)
	b = binary.BigEndian.AppendUint64(b, a.Position.Index)
	b = binary.BigEndian.AppendUint64(b, a.node)
	b = binary.BigEndian.AppendUint32(b, a.Place)
	b = binary.BigEndian.AppendUint64(b, a.Set)
	b = append(b, a.history[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Missing)))
	for _, r := range a.Missing {
		b = binary.BigEndian.AppendUint64(b, r)
	}
	return append(b, a.Result...)
}

// decodeAnswer is the inverse of encode.
func decodeAnswer(b []byte) (a served, err error) {
	if len(b) < answerHeader {
		return a, errShortMessage
	}
	a.Code = core.Code(b[0])
	a.Position.Term = binary.BigEndian.Uint64(b[1:])
	a.Position.Index = binary.BigEndian.Uint64(b[9:])
	a.node = binary.BigEndian.Uint64(b[17:])
	a.Place = binary.BigEndian.Uint32(b[25:])
	a.Set = binary.BigEndian.Uint64(b[29:])
	a.history = [16]byte(b[37:53])
	n := int(binary.BigEndian.Uint16(b[53:]))
	if b = b[answerHeader:]; len(b) < 8*n {
		return a, errShortMessage
	}
	for range n {
		a.Missing = append(a.Missing, binary.BigEndian.Uint64(b))
		b = b[8:]
	}
	a.Result = b
	return a, nil
}
