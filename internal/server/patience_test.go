package server

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// TestPatience: every word says who is still missing, one comes every second although nothing happens, and none after
// the end.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []api.Progress
		p := newPatience("waiting", []string{"n1", "n2", "n3"}, 2, func(at api.Progress) { told = append(told, at) })
		if k := p.reached("n2"); k != 1 {
			t.Errorf("%d are done", k)
		}
		<-time.After(2*patienceEvery + patienceEvery/2)
		if k := p.reached("n1"); k != 2 {
			t.Errorf("%d are done", k)
		}
		p.reached("n3") // more than were asked for
		p.end()
		<-time.After(3 * patienceEvery)
		missing := api.Progress{What: "waiting for n1, n3", Done: 1, Total: 2, Unit: "nodes"}
		all := api.Progress{What: "waiting", Done: 2, Total: 2, Unit: "nodes"}
		want := []api.Progress{missing, missing, missing, all, all}
		if len(told) != len(want) {
			t.Fatalf("told %+v", told)
		}
		for i := range want {
			if told[i] != want[i] {
				t.Errorf("word %d: %+v, want %+v", i, told[i], want[i])
			}
		}
		quiet := newPatience("waiting", []string{"n1"}, 1, nil)
		quiet.reached("n1")
		quiet.end()
	})
}
