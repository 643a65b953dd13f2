package server

import (
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// What status says while versions are mixed, and when the level may be raised.
func TestLevelWarnings(t *testing.T) {
	node := func(name string, most uint64, removed bool) control.Node {
		return control.Node{Name: name, Levels: control.Levels{Min: 1, Max: most}, Removed: removed}
	}
	for what, c := range map[string]struct {
		level uint64
		nodes []control.Node
		want  string // the warning's name; "": none
		text  string
	}{
		"all alike":         {1, []control.Node{node("n1", 1, false), node("n2", 1, false)}, "", ""},
		"some are ahead":    {1, []control.Node{node("n1", 2, false), node("n2", 1, false), node("n3", 1, false)}, "upgrade_under_way", "n2 and n3 only level 1"},
		"many are behind":   {1, []control.Node{node("n1", 1, false), node("n2", 1, false), node("n3", 1, false), node("n4", 1, false), node("n5", 2, false)}, "upgrade_under_way", "n1 and 3 more"},
		"all are ahead":     {1, []control.Node{node("n1", 3, false), node("n2", 2, false)}, "level_not_raised", "every node knows level 2"},
		"but a removed one": {1, []control.Node{node("n1", 2, false), node("n2", 1, true)}, "level_not_raised", "every node knows level 2"},
		"raised":            {2, []control.Node{node("n1", 2, false), node("n2", 2, false)}, "", ""},
	} {
		list := levelWarnings(&control.State{Cluster: control.Cluster{ID: "c", Level: c.level}, Nodes: c.nodes})
		switch {
		case c.want == "" && len(list) == 0:
		case len(list) != 1 || list[0].Name != c.want || !strings.Contains(list[0].Text, c.text) || list[0].Hint == "":
			t.Errorf("%s: %+v, want %q with %q", what, list, c.want, c.text)
		}
	}
}
