package files

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

var loneSeed = flag.Uint64("lone.seed", 0, "seed of TestLoneAuthor; 0 draws one")

// TestLoneAuthor does the same to a binding and to a directory that nobody else knows. As long as nobody else changes the
// binding, both behave the same: every operation has the same outcome, both trees are the same in the end, and nothing is
// kept aside. The author is a follower: it hears of what it has committed later than it gets its answers.
func TestLoneAuthor(t *testing.T) {
	seed := *loneSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (again with -lone.seed=%d)", seed, seed)
	for _, run := range []struct {
		name  string
		names int // few: each is made and removed again and again
		pause time.Duration
	}{{"few names", 3, 0}, {"few names, slowly", 3, 2 * time.Millisecond}, {"many names", 8, time.Millisecond / 2}} {
		t.Run(run.name, func(t *testing.T) {
			f := newFarm(t, 2)
			f.up()
			f.flush()
			rng := rand.New(rand.NewPCG(seed, uint64(run.names)))
			lags := rand.New(rand.NewPCG(seed, 99))
			nd := f.nodes[0]
			nd.lag(func() { rest(time.Duration(lags.IntN(8)) * time.Millisecond) })
			alone := t.TempDir()
			for range 300 {
				op := loneOp(rng, run.names)
				here, there := op.do(nd.root), op.do(alone)
				if !sameErrno(here, there) {
					t.Fatalf("%s: %v; where nobody looks: %v", op.what, here, there)
				}
				rest(run.pause)
			}
			f.flush()
			f.same()
			same(t, nd.root, alone)
		})
	}
}

// rest is a part of the workload.
func rest(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// loneChange is something to be done to a tree.
type loneChange struct {
	what string
	do   func(root string) error
}

func loneOp(rng *rand.Rand, names int) loneChange {
	pick := func() string {
		p := fmt.Sprint("p", rng.IntN(names))
		for range rng.IntN(3) {
			p += fmt.Sprint("/p", rng.IntN(names))
		}
		return p
	}
	a, b := pick(), pick()
	content := fmt.Append(nil, "content ", rng.Uint64())
	write := func(flags int) func(string) error {
		return func(root string) error {
			f, err := os.OpenFile(filepath.Join(root, a), os.O_WRONLY|os.O_CREATE|flags, 0o644)
			if err != nil {
				return err
			}
			_, err = f.Write(content)
			return errors.Join(err, f.Close())
		}
	}
	switch rng.IntN(8) {
	case 0, 1:
		return loneChange{"write " + a, write(os.O_TRUNC)}
	case 2:
		return loneChange{"make " + a, write(os.O_EXCL)}
	case 3:
		return loneChange{"mkdir " + a, func(root string) error { return os.Mkdir(filepath.Join(root, a), 0o755) }}
	case 4:
		return loneChange{"a tree at " + a, func(root string) error {
			dir := filepath.Join(root, a, "deep", "er")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "f"), content, 0o644)
		}}
	case 5:
		return loneChange{"rm -r " + a, func(root string) error { return os.RemoveAll(filepath.Join(root, a)) }}
	default:
		return loneChange{"mv " + a + " " + b, func(root string) error {
			return os.Rename(filepath.Join(root, a), filepath.Join(root, b))
		}}
	}
}

func sameErrno(a, b error) bool {
	var x, y syscall.Errno
	errors.As(a, &x)
	errors.As(b, &y)
	return (a == nil) == (b == nil) && x == y
}

// same compares names, kinds and contents of two trees, but for what is Lockstep's.
func same(t *testing.T, root, want string) {
	t.Helper()
	here, there := loneTree(t, root), loneTree(t, want)
	for p, w := range there {
		if here[p] != w {
			t.Errorf("%s: %q, should be %q", p, here[p], w)
		}
	}
	for p, h := range here {
		if _, ok := there[p]; !ok {
			t.Errorf("%s: %q, should not be", p, h)
		}
	}
}

func loneTree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || p == ".":
			return err
		case p == ".lockstep":
			return fs.SkipDir
		case d.IsDir():
			out[p] = "a directory"
			return nil
		}
		b, err := os.ReadFile(filepath.Join(root, p))
		out[p] = string(b)
		return err
	}))
	return out
}
