package files

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/content"
)

// Holders says who must have a content durably before an entry may name it. The author is in neither list.
type Holders struct {
	Voters []uint64 // members whose copies count for Quorum
	Quorum int      // so many of them
	// All of these too, as long as they are listed and allPatience is not over: of a group with ack all, the in-sync set.
	All  []uint64
	Hint string // what a person can do who does not want to wait for All
}

const (
	// allPatience is how long contents that the quorum has wait for the rest of Holders.All; as long as the engine waits
	// for entries under ack all.
	allPatience = 10 * time.Second
	// stagingLook is how often it is looked at who must have a content, and who is up, while one waits.
	stagingLook = 250 * time.Millisecond
	// stagingQuiet is how long one waits before the status says so; longer by what the contents take at stagingSlow.
	stagingQuiet = time.Second
	stagingSlow  = 4 << 20 // bytes a second
)

// shipment is the contents of one batch on their way to the members.
type shipment struct {
	items []content.Item
	news  chan struct{} // capacity 1: a member has answered
	over  atomic.Bool   // nobody waits for it any more

	mu      sync.Mutex
	answers map[uint64]int           // how often a member has answered
	have    map[uint64]bool          // members that have all
	errs    map[uint64]error         // what the others said last
	refused map[uint64]map[int]error // of those, what the ones that have the rest could not take
	failed  map[int]error            // items that changed or cannot be read: the author's fault, not a member's
}

func newShipment(items []content.Item) *shipment {
	sh := &shipment{items: items, news: make(chan struct{}, 1), answers: map[uint64]int{}, have: map[uint64]bool{},
		errs: map[uint64]error{}, refused: map[uint64]map[int]error{}, failed: map[int]error{}}
	for i := range items {
		items[i].Void = sh.over.Load
	}
	return sh
}

// answer takes a member's result.
func (sh *shipment) answer(member uint64, err error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.answers[member]++
	delete(sh.errs, member)
	delete(sh.refused, member)
	var some *content.PushError
	switch {
	case err == nil:
		sh.have[member] = true
	case errors.As(err, &some):
		if refused := sh.blame(some); len(refused) == 0 {
			sh.have[member] = true
		} else {
			sh.errs[member], sh.refused[member] = err, refused
		}
	default:
		sh.errs[member] = err
	}
	select {
	case sh.news <- struct{}{}:
	default:
	}
}

// blame takes over the items that failed on our side and returns those that the member could not take.
func (sh *shipment) blame(e *content.PushError) (refused map[int]error) {
	refused = map[int]error{}
	for i, err := range e.Failed {
		if errors.Is(err, content.ErrNoSpace) || errors.Is(err, content.ErrMember) {
			refused[i] = err
			continue
		}
		sh.failed[i] = err
	}
	return refused
}

// outcome is what became of a shipment.
type outcome struct {
	lacking []uint64      // who should have had it and has it not
	failed  map[int]error // items that could not be read as they were
	stuck   map[int]error // items that too few members have, because others refused them
}

// staging brings one shipment to the members and waits for those that Holders asks for.
type staging struct {
	sh    *shipment
	peers Peers
	line  func(member uint64) chan<- *shipment // its worker, which answers
	says  func(error)                          // told what is missing, every now and then once it takes long
	quiet time.Duration                        // how long that is

	asks    map[uint64]int       // how often a member was asked
	asked   map[uint64]time.Time // when last
	company bool                 // somebody was up at first: one copy beside the author's makes the entry worth having
}

// judgement is one look at a shipment.
type judgement struct {
	enough   bool     // the quorum has it
	hopeless bool     // the quorum is out of reach
	lacking  []uint64 // who has it not, of Holders.All
	err      error    // what is missing; nil if nothing is
}

// run returns once enough members have the contents durably: the quorum and everybody in All, or the quorum for as long
// as the patience lasts; lacking is then who has them not. As soon as the quorum is out of reach it fails, or returns the
// items for which that is so, if those are what members refused while they took the rest.
func (s *staging) run(ctx context.Context) (out outcome, err error) {
	s.asks, s.asked = map[uint64]int{}, map[uint64]time.Time{}
	began := time.Now()
	var enough time.Time // since when the quorum has them
	look := time.NewTicker(stagingLook)
	defer look.Stop()
	s.offer()
	for {
		v := s.look()
		if v.enough && enough.IsZero() {
			enough = time.Now()
		}
		switch {
		case v.enough && (len(v.lacking) == 0 || time.Since(enough) >= allPatience):
			return s.outcome(v.lacking, nil), nil
		case v.hopeless:
			if stuck, partly := s.stuck(); partly {
				return s.outcome(v.lacking, stuck), nil
			}
			return out, v.err
		case time.Since(began) >= s.quiet:
			s.says(v.err)
		}
		select {
		case <-s.sh.news:
		case <-look.C:
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
}

func (s *staging) outcome(lacking []uint64, stuck map[int]error) outcome {
	s.sh.mu.Lock()
	defer s.sh.mu.Unlock()
	return outcome{lacking, maps.Clone(s.sh.failed), stuck}
}

// offer gives the shipment to everybody who is up and keeps pace. Others come into question when they are needed.
func (s *staging) offer() {
	for _, p := range s.peers.List() {
		if p.Up {
			s.company = true
			s.ask(p.ID)
		}
	}
}

// ask puts the shipment into a member's line; false: it is full.
func (s *staging) ask(member uint64) bool {
	select {
	case s.line(member) <- s.sh:
		s.asks[member]++
		s.asked[member] = time.Now()
		return true
	default:
		return false
	}
}

// look judges how far the shipment is, and asks who is needed and was not asked.
func (s *staging) look() (v judgement) {
	h, peers := s.peers.Holders(), s.peers.List()
	everybody := ids(peers)
	s.sh.mu.Lock()
	defer s.sh.mu.Unlock()
	var full []uint64 // members that are needed and whose lines are full: they are asked at a later look
	for _, p := range peers {
		wanted := slices.Contains(h.All, p.ID)
		if wanted && !s.sh.have[p.ID] {
			v.lacking = append(v.lacking, p.ID)
		}
		_, votes := s.count(h.Voters, full)
		_, copies := s.count(everybody, full)
		needed := wanted || votes < h.Quorum && slices.Contains(h.Voters, p.ID) || s.company && copies == 0
		if needed && p.Up && s.idle(p.ID, wanted) && !s.ask(p.ID) {
			full = append(full, p.ID)
		}
	}
	votes, votesToCome := s.count(h.Voters, full)
	copies, copiesToCome := s.count(everybody, full)
	v.enough = votes >= h.Quorum && (copies > 0 || !s.company)
	v.hopeless = votesToCome < h.Quorum || s.company && copiesToCome == 0
	if !v.enough || len(v.lacking) > 0 {
		v.err = s.missing(h, peers, v)
	}
	return v
}

// idle says whether a member can be asked: it was not yet, or, if again, it failed a while ago.
func (s *staging) idle(id uint64, again bool) bool {
	asks := s.asks[id]
	return !s.sh.have[id] && s.sh.answers[id] == asks && (asks == 0 || again && time.Since(s.asked[id]) >= retryTime)
}

// count says how many of some members have the contents, and how many have them, were asked for that, or are about to be.
func (s *staging) count(members, about []uint64) (have, toCome int) {
	for _, id := range members {
		switch {
		case s.sh.have[id]:
			have++
			toCome++
		case s.asks[id] > s.sh.answers[id] || slices.Contains(about, id):
			toCome++
		}
	}
	return have, toCome
}

// stuck returns the items that too few members have, and whether it is up to these: each of them was refused, or others
// were not stuck.
func (s *staging) stuck() (stuck map[int]error, partly bool) {
	h, peers := s.peers.Holders(), s.peers.List()
	s.sh.mu.Lock()
	defer s.sh.mu.Unlock()
	stuck = map[int]error{}
	unexplained := false
	for i := range s.sh.items {
		votes, copies, refusals := 0, 0, 0
		for _, p := range peers {
			refused, took := s.sh.refused[p.ID]
			switch {
			case took && refused[i] != nil:
				refusals++
			case took || s.sh.have[p.ID]:
				copies++
				if slices.Contains(h.Voters, p.ID) {
					votes++
				}
			}
		}
		if votes < h.Quorum || s.company && copies == 0 {
			stuck[i] = s.refusal(i, peers)
			unexplained = unexplained || refusals == 0
		}
	}
	return stuck, len(s.sh.refused) > 0 && (!unexplained || len(stuck) < len(s.sh.items))
}

// refusal says why an item is stuck.
func (s *staging) refusal(i int, peers []Peer) error {
	var why, room, other []string
	for _, p := range peers {
		switch err := s.sh.refused[p.ID][i]; {
		case errors.Is(err, content.ErrNoSpace):
			room = append(room, p.Name)
			why = append(why, p.Name+" ("+err.Error()+")")
		case err != nil:
			other = append(other, p.Name)
			why = append(why, p.Name+" ("+err.Error()+")")
		case !s.sh.have[p.ID] && s.sh.refused[p.ID] == nil:
			why = append(why, p.Name+" ("+s.state(p)+")")
		}
	}
	hint := "the log says why on " + strings.Join(other, ", ") + "; it is tried again by itself, within a minute"
	if len(room) > 0 {
		hint = "make room on " + strings.Join(room, ", ") + "; it is tried again by itself, within a minute"
	}
	return &api.Error{Code: api.CodeUnavailable, Hint: hint,
		Why: fmt.Sprintf("the content (%d bytes) waits, other changes go on: too few members can take it: %s", s.sh.items[i].Size, strings.Join(why, ", "))}
}

// missing says who is waited for, and why.
func (s *staging) missing(h Holders, peers []Peer, v judgement) error {
	who := func(ids []uint64) string {
		var words []string
		for _, p := range peers {
			if slices.Contains(ids, p.ID) && !s.sh.have[p.ID] {
				words = append(words, p.Name+" ("+s.state(p)+")")
			}
		}
		return strings.Join(words, ", ")
	}
	switch {
	case v.enough:
		return &api.Error{Code: api.CodeUnavailable, Hint: h.Hint,
			Why: "not all of the in-sync set have the contents of new files yet: " + who(v.lacking)}
	case h.Quorum == 0:
		return &api.Error{Code: api.CodeUnavailable, Why: "no other member has the contents of new files yet: " + who(ids(peers)), Hint: s.hint(peers)}
	}
	return &api.Error{Code: api.CodeUnavailable, Hint: s.hint(peers),
		Why: fmt.Sprintf("the contents of new files have to be on %d of the other voters first; not yet on %s", h.Quorum, who(h.Voters))}
}

// hint says what can be done when too few members have the contents.
func (s *staging) hint(peers []Peer) string {
	if slices.ContainsFunc(peers, func(p Peer) bool { return !p.Up && !s.sh.have[p.ID] }) {
		return "lockstep node list shows which nodes are down; it goes on by itself when enough of them are back"
	}
	return "all nodes are up: it goes on by itself; if it does not, the logs of those that have them not say why"
}

// state says what keeps a member from having the contents.
func (s *staging) state(p Peer) string {
	switch err := s.sh.errs[p.ID]; {
	case !p.Up:
		return "down"
	case s.asks[p.ID] > s.sh.answers[p.ID] || err == nil:
		return "asked"
	default:
		return err.Error()
	}
}

func ids(peers []Peer) []uint64 {
	all := make([]uint64, len(peers))
	for i, p := range peers {
		all[i] = p.ID
	}
	return all
}
