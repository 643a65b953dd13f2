package files

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	// stagingQuiet is how long one waits before the status says so.
	stagingQuiet = time.Second
)

// shipment is the contents of one batch on their way to the members.
type shipment struct {
	items []content.Item
	news  chan struct{} // capacity 1: a member has answered

	mu      sync.Mutex
	answers map[uint64]int   // how often a member has answered
	have    map[uint64]bool  // members that have all
	errs    map[uint64]error // what the others said last
	failed  map[int]error    // items that changed or cannot be read: the author's fault, not a member's
}

func newShipment(items []content.Item) *shipment {
	return &shipment{items: items, news: make(chan struct{}, 1), answers: map[uint64]int{}, have: map[uint64]bool{},
		errs: map[uint64]error{}, failed: map[int]error{}}
}

// answer takes a member's result.
func (sh *shipment) answer(member uint64, err error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.answers[member]++
	var some *content.PushError
	if err == nil || errors.As(err, &some) && sh.ours(some) {
		sh.have[member] = true
		delete(sh.errs, member)
	} else {
		sh.errs[member] = err
	}
	select {
	case sh.news <- struct{}{}:
	default:
	}
}

// ours takes over the items that failed on our side and reports whether those were all.
func (sh *shipment) ours(e *content.PushError) bool {
	all := true
	for i, err := range e.Failed {
		if errors.Is(err, content.ErrNoSpace) || errors.Is(err, content.ErrMember) {
			all = false
			continue
		}
		sh.failed[i] = err
	}
	return all
}

// staging brings one shipment to the members and waits for those that Holders asks for.
type staging struct {
	sh    *shipment
	peers Peers
	line  func(member uint64) chan<- *shipment // its worker, which answers
	says  func(error)                          // told what is missing, every now and then once it takes long

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
// as the patience lasts; lacking is then who has them not. It fails as soon as the quorum is out of reach.
func (s *staging) run(ctx context.Context) (lacking []uint64, err error) {
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
			return v.lacking, nil
		case v.hopeless:
			return nil, v.err
		case time.Since(began) >= stagingQuiet:
			s.says(v.err)
		}
		select {
		case <-s.sh.news:
		case <-look.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
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
		return &api.Error{Code: api.CodeUnavailable, Why: "no other member has the contents of new files yet: " + who(ids(peers)), Hint: quorumHint}
	}
	return &api.Error{Code: api.CodeUnavailable, Hint: quorumHint,
		Why: fmt.Sprintf("the contents of new files have to be on %d of the other voters first; not yet on %s", h.Quorum, who(h.Voters))}
}

// quorumHint goes with contents that too few members can take.
const quorumHint = "lockstep node list shows which nodes are down; it goes on by itself when enough of them are back"

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
