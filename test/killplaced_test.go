package test

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

// author edits, deletes and makes files of one tree and remembers what is in it.
type author struct {
	t      *testing.T
	n      *farm.Node
	rng    *rand.Rand
	holds  map[string]string
	names  []string // ever used
	recent []string // touched in this round
	spare  int      // deletions that are left in this round: the guard against mass deletion is not what is tested
	count  int
}

func (a *author) make(name string) {
	a.count++
	a.holds[name] = fmt.Sprintf("%d of %s %s", a.count, name, strings.Repeat("x", a.rng.IntN(3000)))
	write(a.t, a.n, name, a.holds[name])
	a.recent = append(a.recent, name)
}

func (a *author) remove(name string) {
	if err := os.Remove(filepath.Join(a.n.Tree, name)); err != nil {
		a.t.Fatal(err)
	}
	delete(a.holds, name)
	a.recent = append(a.recent, name)
}

// touch changes one of the files: most are edited, some deleted, and what was deleted may come again.
func (a *author) touch(name string) {
	if _, ok := a.holds[name]; ok && a.spare > 0 && a.rng.IntN(4) == 0 {
		a.spare--
		a.remove(name)
	} else {
		a.make(name)
	}
}

// touchUntil goes on until stop is closed.
func (a *author) touchUntil(stop <-chan struct{}) {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return
		case <-pace.C:
			a.touch(a.names[a.rng.IntN(len(a.names))])
		}
	}
}

// matches compares the author's own tree with what it did: nothing is there that it did not write.
func (a *author) matches() {
	found := 0
	err := filepath.WalkDir(a.n.Tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(a.n.Tree, path)
		if err != nil || strings.HasPrefix(name, ".lockstep") {
			return err
		}
		found++
		if want, ok := a.holds[name]; !ok {
			a.t.Errorf("%s is there, although it was deleted or never written", name)
		} else if read(a.t, a.n, name) != want {
			a.t.Errorf("%s has another content than was written", name)
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	if found < len(a.holds) {
		a.t.Errorf("%d files of %d are there", found, len(a.holds))
	}
}

// killInTheMiddle kills n after it has had a random time to place.
func killInTheMiddle(ctx context.Context, n *farm.Node, rng *rand.Rand) error {
	t := time.NewTimer(time.Duration(rng.IntN(400)) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return n.Kill()
}

// What a killed process had placed is no edit of its node when it comes back: one node writes, another is killed
// again and again while it places, and while it is down everything that it may have placed last changes once more.
func TestKilledWhilePlacing(t *testing.T) {
	ctx, f := start(t, 3)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	rng := rand.New(rand.NewPCG(*seed, 11))
	a := &author{t: t, n: n1, rng: rng, holds: map[string]string{}}
	for i := range 700 {
		a.names = append(a.names, fmt.Sprintf("d%d/f%d", i%9, i))
		a.make(a.names[i])
	}
	settle(t, ctx, f)
	for range 10 {
		a.recent, a.spare = nil, 15
		stop, done := make(chan struct{}), make(chan struct{})
		go func() { defer close(done); a.touchUntil(stop) }()
		err := killInTheMiddle(ctx, n2, rng)
		close(stop)
		<-done
		if err != nil {
			t.Fatal(err)
		}
		a.spare = 15
		for _, name := range slices.Compact(slices.Sorted(slices.Values(a.recent))) {
			a.touch(name)
		}
		if err := f.Run(n2, ""); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(3) > 0 {
			if err := f.WaitUp(ctx, n2); err != nil {
				t.Fatal(err)
			}
		}
	}
	settle(t, ctx, f)
	a.matches()
}
