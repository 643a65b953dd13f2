package server

import (
	"testing"

	"github.com/lockstep-sync/lockstep/api"
)

// TestWhatKeeps: whoever waited in vain is told of each node what keeps it.
func TestWhatKeeps(t *testing.T) {
	problem := api.Problem{Path: "a b", What: "permission denied"}
	for want, c := range map[string]struct {
		dir      api.DirNode
		leadless bool
	}{
		"down: no connection":                                                    {dir: api.DirNode{Mode: "down", Why: "no connection"}, leadless: true},
		"stopped: 700 of 1000 files vanished":                                    {dir: api.DirNode{Mode: "stopped", Why: "700 of 1000 files vanished"}},
		"still comparing its directory with the group":                           {dir: api.DirNode{Mode: "scan"}},
		"diff; files that it lacks: 3":                                           {dir: api.DirNode{Mode: "diff", BehindFiles: 3}},
		"changes of its own that are not committed: 2; the group has no leader":  {dir: api.DirNode{Mode: "live", Pending: 2}, leadless: true},
		"files that it lacks: 1; a b: permission denied; a b: permission denied": {dir: api.DirNode{Mode: "live", BehindFiles: 1, Problems: []api.Problem{problem, problem}}},
		"not there yet": {dir: api.DirNode{Mode: "live"}},
	} {
		if got := whatKeeps(&c.dir, !c.leadless); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
