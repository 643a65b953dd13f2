package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
)

// TestTryRestore: what a new cluster would refuse is refused without one, group after group, and nothing is made.
func TestTryRestore(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := errors.Join(os.Mkdir(full, 0o755), os.WriteFile(filepath.Join(full, "f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	req := func(as, path string, over bool) api.Restore {
		return api.Restore{Group: as, As: as, History: strings.Repeat("01", 16), Term: 1, Index: 7, Ack: "quorum", Conflict: "prefer:gone", Mode: "readwrite",
			Topology: "auto", Paths: map[string]string{"a": path}, OverLiving: over}
	}
	for name, c := range map[string]struct {
		reqs []api.Restore
		code api.Code
		why  string
	}{
		"two groups":            {[]api.Restore{req("web", dir+"/web", false), req("etc", dir+"/etc", false)}, "", ""},
		"one inside the other":  {[]api.Restore{req("web", dir+"/web", false), req("etc", dir+"/web/etc", false)}, api.CodeConflict, "overlaps"},
		"one name":              {[]api.Restore{req("web", dir+"/web", false), req("web", dir+"/etc", false)}, api.CodeConflict, "exists"},
		"it holds files":        {[]api.Restore{req("web", full, false)}, api.CodeConflict, "holds files"},
		"that is allowed":       {[]api.Restore{req("web", full, true)}, "", ""},
		"the data directory":    {[]api.Restore{req("web", data, false)}, api.CodeUsage, "overlaps"},
		"a path that is not so": {[]api.Restore{req("web", `/a\xz`, false)}, api.CodeUsage, ""},
	} {
		out, err := TryRestore(t.Context(), data, "a", c.reqs)
		var e *api.Error
		switch {
		case c.code == "" && (err != nil || len(out) != len(c.reqs) || len(out[0].Warnings) == 0 || !strings.Contains(out[0].Warnings[0], "keep-both")):
			t.Errorf("%s: %+v, %v", name, out, err)
		case c.code != "" && (!errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Why, c.why)):
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("made: %v, %v", entries, err)
	}
}
