package logstore_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dump(t *testing.T, s logstore.Store) string {
	t.Helper()
	d, err := logstoretest.Dump(s)
	must(t, err)
	return d
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// firstDifference shows where two dumps part, and to which group's line the place belongs.
func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	group := ""
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("in %s\n got %.200s\nwant %.200s", group, g[i], w[i])
		}
		if strings.HasPrefix(g[i], "group") {
			group = g[i]
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// matching is the state among those that a crash may leave which p is in.
func matching(t *testing.T, p logstore.Store, m *logstore.Memory, inFlight []logstore.Write) *logstore.Memory {
	t.Helper()
	got := dump(t, p)
	var candidates []string
	for k, n := 0, 0; k <= n; k++ {
		c, err := m.Crash(inFlight, func(unsynced int) int { n = unsynced; return k })
		must(t, err)
		want := dump(t, c)
		if got == want {
			return c
		}
		candidates = append(candidates, firstDifference(got, want))
	}
	t.Fatalf("the state after the crash is none of the %d that are allowed:\n%s", len(candidates), strings.Join(candidates, "\nnor\n"))
	return nil
}
