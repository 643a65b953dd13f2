package files

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/content"
)

// TestShipmentBlame: an item fails for its author's sake only; what a member could not take says nothing about
// the item, which another member may have.
func TestShipmentBlame(t *testing.T) {
	for _, c := range []struct {
		err  error
		ours bool
	}{
		{content.ErrChanged, true},
		{fmt.Errorf("read: %w", os.ErrNotExist), true},
		{fmt.Errorf("the member: %w", content.ErrNoSpace), false},
		{fmt.Errorf("%w to store it", content.ErrMember), false},
	} {
		sh := newShipment(nil)
		sh.answer(2, &content.PushError{Failed: map[int]error{7: c.err}})
		if sh.have[2] != c.ours || len(sh.failed) == 1 != c.ours {
			t.Errorf("%v: the member has them %v, the author's %v", c.err, sh.have[2], sh.failed)
		}
		sh.answer(3, nil)
		if !sh.have[3] || errors.Is(sh.failed[7], content.ErrMember) {
			t.Errorf("%v: the other member's copy did not count", c.err)
		}
	}
}

// members are the others of a group, whose pushes end as the test says.
type members struct {
	mu    sync.Mutex
	all   []Peer
	want  Holders
	lines map[uint64]chan *shipment
}

func newMembers(want Holders, up string) *members {
	m := &members{want: want, lines: map[uint64]chan *shipment{}}
	for i, r := range up {
		id := uint64(i + 2)
		m.all = append(m.all, Peer{ID: id, Name: fmt.Sprintf("n%d", id), Up: r == 'u'})
		m.lines[id] = make(chan *shipment, 1)
	}
	return m
}

func (m *members) List() []Peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

func (m *members) Holders() Holders {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.want
}

func (m *members) Dial(context.Context, uint64) (net.Conn, error) { return nil, errors.New("not here") }

func (m *members) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// staged is what became of a shipment.
type staged struct {
	lacking []uint64
	err     error
	took    time.Duration
	said    []error
	stuck   map[int]error
}

func (s staged) String() string {
	return fmt.Sprintf("lacking %v, error %v, after %v, said %d things", s.lacking, s.err, s.took, len(s.said))
}

// ship stages one shipment; the result comes by the channel.
func (m *members) ship(t *testing.T, items ...content.Item) <-chan staged {
	done := make(chan staged, 1)
	var s staged
	st := &staging{sh: newShipment(items), peers: m, quiet: stagingQuiet, line: func(id uint64) chan<- *shipment { return m.lines[id] },
		says: func(err error) { s.said = append(s.said, err) }}
	began := time.Now()
	go func() {
		var out outcome
		out, s.err = st.run(t.Context())
		s.lacking, s.stuck = out.lacking, out.stuck
		s.took = time.Since(began)
		done <- s
	}()
	return done
}

// takes has a member take the next shipment from its line and answer it.
func (m *members) takes(id uint64, err error) { (<-m.lines[id]).answer(id, err) }

func has(t *testing.T, out <-chan staged) bool {
	t.Helper()
	synctest.Wait()
	return len(out) > 0
}

// TestStagingQuorum: as many voters as are asked for, and nobody else, make a quorum; one who does not vote stands in for
// none of them.
func TestStagingQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers(Holders{Voters: []uint64{2, 3}, Quorum: 1}, "uuu")
		out := m.ship(t)
		m.takes(4, nil)
		if has(t, out) {
			t.Error("a member that does not vote was counted")
		}
		m.takes(2, errors.New("no"))
		if has(t, out) {
			t.Error("a failure was counted, or the other voter not waited for")
		}
		m.takes(3, nil)
		if s := <-out; s.err != nil || len(s.lacking) > 0 || s.took > 0 {
			t.Error(s)
		}
	})
}

// TestStagingOutOfReach: what cannot become a quorum fails at once and says who is missing and what to do.
func TestStagingOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers(Holders{Voters: []uint64{2, 3}, Quorum: 1}, "duu")
		out := m.ship(t)
		m.takes(4, nil)
		m.takes(3, content.ErrNoSpace)
		s := <-out
		var known *api.Error
		if !errors.As(s.err, &known) || known.Hint == "" || s.took > 0 ||
			!strings.Contains(known.Why, "n2 (down)") || !strings.Contains(known.Why, "n3 ("+content.ErrNoSpace.Error()) {
			t.Error(s)
		}
	})
}

// TestStagingAlone: where nothing is asked for, one copy beside the author's is made if anybody is up.
func TestStagingAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if s := <-newMembers(Holders{}, "dd").ship(t); s.err != nil {
			t.Error("nobody is up:", s)
		}
		m := newMembers(Holders{}, "ud")
		out := m.ship(t)
		if has(t, out) {
			t.Error("no copy beside the author's was waited for")
		}
		m.takes(2, nil)
		if s := <-out; s.err != nil {
			t.Error(s)
		}
	})
}

// TestStagingAll: everybody in the in-sync set is waited for, whoever leaves it no more, and nobody for ever.
func TestStagingAll(t *testing.T) {
	all := Holders{Voters: []uint64{2, 3}, Quorum: 1, All: []uint64{2, 3}, Hint: "wait"}
	synctest.Test(t, func(t *testing.T) { // one is down and leaves the set
		m := newMembers(all, "ud")
		out := m.ship(t)
		m.takes(2, nil)
		<-time.After(5 * time.Second)
		if has(t, out) {
			t.Fatal("a member of the set was not waited for")
		}
		m.set(func() { m.want.All = []uint64{2} })
		s := <-out
		if s.err != nil || len(s.lacking) > 0 || s.took > 6*time.Second {
			t.Error(s)
		}
		var known *api.Error
		if len(s.said) == 0 || !errors.As(s.said[0], &known) || known.Hint != "wait" || !strings.Contains(known.Why, "n3 (down)") || strings.Contains(known.Why, "n2") {
			t.Errorf("said %v", s.said)
		}
	})
	synctest.Test(t, func(t *testing.T) { // one fails, and is asked again; another is up again
		m := newMembers(all, "ud")
		out := m.ship(t)
		m.takes(2, errors.New("reset"))
		m.set(func() { m.all[1].Up = true })
		m.takes(3, nil)
		m.takes(2, nil)
		if s := <-out; s.err != nil || len(s.lacking) > 0 || s.took > 3*time.Second {
			t.Error(s)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the set cannot shrink: a quorum in the end, and who lacks it
		m := newMembers(all, "ud")
		out := m.ship(t)
		m.takes(2, nil)
		if s := <-out; s.err != nil || !slices.Equal(s.lacking, []uint64{3}) || s.took != allPatience {
			t.Error(s)
		}
	})
}

// TestStagingPartly: only what too few members could take is stuck, if it is up to that.
func TestStagingPartly(t *testing.T) {
	full := func(items ...int) error {
		e := &content.PushError{Failed: map[int]error{}}
		for _, i := range items {
			e.Failed[i] = &content.RoomError{Need: 5 << 20, Reserve: 1 << 20, Free: 3 << 20}
		}
		return e
	}
	for _, c := range []struct {
		name       string
		up         string
		quorum     int
		two, three error
		stuck      []int
		fails      bool
	}{
		{"one item nowhere", "uu", 1, full(1), full(1, 2), []int{1}, false},
		{"each has what the other has not", "uu", 1, full(0), full(1, 2), nil, false},
		{"all refused", "uu", 1, full(0, 1, 2), full(0, 1, 2), []int{0, 1, 2}, false},
		{"no quorum of members", "uu", 2, full(1), errors.New("reset"), nil, true},
		{"the other is down", "ud", 1, full(1), nil, []int{1}, false},
		{"both broken", "uu", 1, errors.New("reset"), errors.New("reset"), nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMembers(Holders{Voters: []uint64{2, 3}, Quorum: c.quorum}, c.up)
				out := m.ship(t, content.Item{Size: 1}, content.Item{Size: 5 << 20}, content.Item{Size: 3})
				m.takes(2, c.two)
				if c.up == "uu" {
					m.takes(3, c.three)
				}
				s := <-out
				if got := slices.Sorted(maps.Keys(s.stuck)); (s.err != nil) != c.fails || !slices.Equal(got, c.stuck) {
					t.Errorf("%v, stuck %v", s, got)
				}
				var known *api.Error
				if err := s.stuck[1]; err != nil && (!errors.As(err, &known) || !strings.Contains(known.Why, "n2 (not enough space on the member's disk: 5.0 MiB needed and 1.0 MiB to be left free, 3.0 MiB free)") ||
					!strings.Contains(known.Hint, "make room on n2")) {
					t.Errorf("says %v, hint %v", err, known)
				}
			})
		})
	}
}

// TestStagingFullLines: who is behind is left out while others are enough, and waited for when they are not.
func TestStagingFullLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers(Holders{Voters: []uint64{2, 3}, Quorum: 1}, "uu")
		m.lines[3] <- newShipment(nil)
		out := m.ship(t)
		m.takes(2, nil)
		if s := <-out; s.err != nil || len(m.lines[3]) != 1 {
			t.Error(s)
		}
		m.want.Quorum = 2
		out = m.ship(t)
		m.takes(2, nil)
		if has(t, out) {
			t.Fatal("a slow member that is needed was not waited for")
		}
		<-m.lines[3]
		m.takes(3, nil)
		if s := <-out; s.err != nil {
			t.Error(s)
		}
	})
}
