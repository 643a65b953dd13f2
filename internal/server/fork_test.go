package server

import (
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

func TestMajorityOf(t *testing.T) {
	v := func(replica uint64, voters ...uint64) logEndAnswer {
		return logEndAnswer{Replica: replica, Voters: voters}
	}
	down, observer := logEndAnswer{}, logEndAnswer{Replica: 9}
	leads := v(1, 1, 2, 3)
	leads.Leads = true
	for name, c := range map[string]struct {
		ends   []logEndAnswer
		enough bool
	}{
		"one of three":                          {[]logEndAnswer{v(1, 1, 2, 3), down, down}, false},
		"two of three":                          {[]logEndAnswer{v(1, 1, 2, 3), v(2, 1, 2, 3), down}, true},
		"two of four":                           {[]logEndAnswer{v(1, 1, 2, 3, 4), v(2, 1, 2, 3, 4), down, down}, false},
		"one that leads":                        {[]logEndAnswer{leads, down, down}, true},
		"one and an observer":                   {[]logEndAnswer{v(1, 1, 2, 3), down, observer}, false},
		"two, and an observer that comes first": {[]logEndAnswer{observer, v(1, 1, 2, 3), v(2, 1, 2, 3)}, true},
		"an observer alone":                     {[]logEndAnswer{observer, down}, false},
		"enough by the newer configuration":     {[]logEndAnswer{v(1, 1, 2, 3), v(4, 4)}, true},
		"nobody":                                {[]logEndAnswer{down, down}, false},
	} {
		if _, _, enough := majorityOf(c.ends); enough != c.enough {
			t.Errorf("%s: enough %v", name, enough)
		}
	}
}

func TestFarthest(t *testing.T) {
	here, before := [16]byte{2}, [16]byte{1}
	at := func(h [16]byte, term, index uint64) logEndAnswer {
		return logEndAnswer{Replica: 1, History: h, Last: core.Position{Term: term, Index: index}}
	}
	for name, c := range map[string]struct {
		ends []logEndAnswer
		want int
	}{
		"the longer one":                      {[]logEndAnswer{at(here, 3, 10), at(here, 3, 12), at(here, 3, 11)}, 1},
		"the later term":                      {[]logEndAnswer{at(here, 3, 50), at(here, 4, 12)}, 1},
		"never the history that was given up": {[]logEndAnswer{at(before, 9, 90), at(here, 2, 5)}, 1},
		"unless there is nothing else":        {[]logEndAnswer{{}, at(before, 9, 90)}, 1},
		"an empty one is nobody":              {[]logEndAnswer{at(here, 0, 0), {}}, -1},
	} {
		if got := farthest(c.ends, here); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
