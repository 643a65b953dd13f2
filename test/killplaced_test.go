package test

import (
	"context"
	"errors"
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
	n      *farm.Node
	rng    *rand.Rand
	holds  map[string]string
	names  []string // ever used
	recent []string // touched in this round
	spare  int      // deletions that are left in this round: the guard against mass deletion is not what is tested
	count  int
}

func (a *author) make(name string) error {
	a.count++
	content := fmt.Sprintf("%d of %s %s", a.count, name, strings.Repeat("x", a.rng.IntN(3000)))
	path := filepath.Join(a.n.Tree, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return err
	}
	a.holds[name] = content
	a.recent = append(a.recent, name)
	return nil
}

func (a *author) remove(name string) error {
	if err := os.Remove(filepath.Join(a.n.Tree, name)); err != nil {
		return err
	}
	delete(a.holds, name)
	a.recent = append(a.recent, name)
	return nil
}

// touch changes one of the files: most are edited, some deleted, and what was deleted may come again.
func (a *author) touch(name string) error {
	if _, ok := a.holds[name]; ok && a.spare > 0 && a.rng.IntN(4) == 0 {
		a.spare--
		return a.remove(name)
	}
	return a.make(name)
}

// touchUntil goes on until stop is closed, or something goes wrong.
func (a *author) touchUntil(stop <-chan struct{}) error {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-pace.C:
			if err := a.touch(a.names[a.rng.IntN(len(a.names))]); err != nil {
				return err
			}
		}
	}
}

// matches compares the author's own tree with what it did: nothing is there that it did not write.
func (a *author) matches(t *testing.T) {
	t.Helper()
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
			t.Errorf("%s is there, although it was deleted or never written", name)
		} else if read(t, a.n, name) != want {
			t.Errorf("%s has another content than was written", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < len(a.holds) {
		t.Errorf("%d files of %d are there", found, len(a.holds))
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
	t.Parallel()
	ctx, f := start(t, 3)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	rng := rand.New(rand.NewPCG(*seed, 11))
	a := &author{n: n1, rng: rand.New(rand.NewPCG(*seed, 12)), holds: map[string]string{}}
	for i := range 700 {
		a.names = append(a.names, fmt.Sprintf("d%d/f%d", i%9, i))
		if err := a.make(a.names[i]); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, ctx, f)
	for range 10 {
		a.recent, a.spare = nil, 15
		stop, touched := make(chan struct{}), make(chan error, 1)
		go func() { touched <- a.touchUntil(stop) }()
		err := killInTheMiddle(ctx, n2, rng)
		close(stop)
		if err := errors.Join(err, <-touched); err != nil {
			t.Fatal(err)
		}
		a.spare = 15
		for _, name := range slices.Compact(slices.Sorted(slices.Values(a.recent))) {
			if err := a.touch(name); err != nil {
				t.Fatal(err)
			}
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
	a.matches(t)
}
