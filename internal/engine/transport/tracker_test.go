package transport

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func newTestTracker(say func(string)) *tracker {
	k := &tracker{links: map[*link]struct{}{}, now: func() time.Time { return time.Time{} }}
	k.emit = func(up bool, why Why) {
		if up {
			say("up")
		} else {
			say(why.String())
		}
	}
	return k
}

func TestTracker(t *testing.T) {
	in := func(boot uint64) *link { return newLink(nil, boot, true) }
	out := func(boot uint64) *link { return newLink(nil, boot, false) }
	lose := func(k *tracker, l *link, why Why) []*link {
		l.why = why
		return k.lost(l)
	}
	for _, tt := range []struct {
		what string
		run  func(k *tracker)
		want string
	}{
		{"both directions, one report", func(k *tracker) { k.joined(in(1)); k.joined(out(1)) }, "up"},
		{"death", func(k *tracker) {
			a, b := in(1), out(1)
			k.joined(a)
			k.joined(b)
			if cut := lose(k, a, Reset); !slices.Equal(cut, []*link{b}) {
				t.Errorf("cut %v", cut)
			}
			lose(k, b, Reset)
			k.dialFailed(Refused)
			k.dialFailed(Refused)
			k.dialFailed(Timeout)
		}, "up reset refused"},
		{"never there", func(k *tracker) { k.dialFailed(Timeout); k.dialFailed(Timeout) }, "timeout"},
		{"wrong address of a living peer", func(k *tracker) { k.joined(in(1)); k.dialFailed(Refused) }, "up"},
		{"quick restart: old connection ends late", func(k *tracker) {
			old := out(1)
			k.joined(old)
			if cut := k.joined(in(2)); !slices.Equal(cut, []*link{old}) {
				t.Errorf("cut %v", cut)
			}
			lose(k, old, Reset)
		}, "up reset up"},
		{"replaced connection of the same process", func(k *tracker) {
			old := in(1)
			k.joined(old)
			if cut := k.joined(in(1)); !slices.Equal(cut, []*link{old}) {
				t.Errorf("cut %v", cut)
			}
			lose(k, old, Reset)
		}, "up"},
		{"goodbye, then the end", func(k *tracker) {
			a, b := in(1), out(1)
			k.joined(a)
			k.joined(b)
			k.goodbye(a)
			k.goodbye(b)
			lose(k, a, Reset)
			lose(k, b, Reset)
			k.dialFailed(Refused)
		}, "up goodbye refused"},
		{"a leaving process is not up again", func(k *tracker) {
			a := in(1)
			k.joined(a)
			k.goodbye(a)
			k.joined(out(1))
		}, "up goodbye"},
		{"its successor is", func(k *tracker) {
			a := in(1)
			k.joined(a)
			k.goodbye(a)
			k.joined(in(2))
		}, "up goodbye up"},
		{"ended politely, other direction lives", func(k *tracker) {
			a := in(1)
			k.joined(a)
			k.joined(out(1))
			lose(k, a, Closed)
		}, "up"},
		{"ended politely", func(k *tracker) { a := in(1); k.joined(a); lose(k, a, Closed) }, "up closed"},
		{"silence", func(k *tracker) { a := in(1); k.joined(a); lose(k, a, Timeout) }, "up timeout"},
		{"goodbye on a dead link", func(k *tracker) { a := in(1); k.joined(a); k.joined(in(2)); k.goodbye(a) }, "up reset up"},
	} {
		var said []string
		tt.run(newTestTracker(func(s string) { said = append(said, s) }))
		if got := strings.Join(said, " "); got != tt.want {
			t.Errorf("%s: said %q, want %q", tt.what, got, tt.want)
		}
	}
}

// TestTrackerProperties: after any history, a peer with a live link to a process that stays is up, one without
// links is down, and no state is reported twice.
func TestTrackerProperties(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 0))
		last, links := "", []*link{}
		k := newTestTracker(func(s string) {
			if s == last {
				t.Fatalf("seed %d: %q twice", seed, s)
			}
			last = s
		})
		gone := func(cut []*link) {
			links = slices.DeleteFunc(links, func(l *link) bool { return slices.Contains(cut, l) })
		}
		boot, leaving := uint64(1), false
		for range 40 {
			switch n := rng.IntN(10); {
			case n < 4:
				if n == 0 {
					boot++
					leaving = false
				}
				l := newLink(nil, boot, rng.IntN(2) == 0)
				gone(k.joined(l))
				links = append(links, l)
			case n < 7 && len(links) > 0:
				l := links[rng.IntN(len(links))]
				l.why = []Why{Reset, Timeout, Closed, 0}[rng.IntN(4)]
				gone(append(k.lost(l), l))
			case n < 8:
				k.dialFailed(Refused)
			case n < 9 && len(links) > 0 && rng.IntN(4) == 0:
				k.goodbye(links[rng.IntN(len(links))])
				leaving = true
			}
			want := len(links) > 0 && !leaving
			if k.up != want || len(k.links) != len(links) {
				t.Fatalf("seed %d: up %v, want %v; %s", seed, k.up, want, fmt.Sprint(len(k.links), len(links)))
			}
		}
	}
}
