package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// TestDamageOfALogIsFoundAndHealed: bits flip in the log of a node that is stopped. It finds that out, does not vote
// with what is left, says so, and begins again under other replica ids, fed by the others: the few groups that are hit,
// or all of them, the control group too.
func TestDamageOfALogIsFoundAndHealed(t *testing.T) {
	for name, bits := range map[string]int{"a few bits": 3, "everywhere": 2000} {
		t.Run(name, func(t *testing.T) { damageDrill(t, bits) })
	}
}

func damageDrill(t *testing.T, bits int) {
	ctx, f := start(t, 3)
	for i := range 30 {
		write(t, f.Nodes[i%3], fmt.Sprintf("d%d/f%d", i%4, i), strings.Repeat("y", 300*i))
	}
	settle(t, ctx, f)
	bad := f.Nodes[2]
	if err := bad.Stop(); err != nil {
		t.Fatal(err)
	}
	write(t, f.Nodes[0], "d1/meanwhile", "by the others")
	arrives(t, ctx, f.Nodes[1], "d1/meanwhile")
	flipBits(t, filepath.Join(bad.Data, "log"), bits)
	if err := f.Run(bad, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitUp(ctx, bad); err != nil {
		t.Fatal(err)
	}
	err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		if !strings.Contains(bad.Log(), "begins again under another id") {
			return errors.New("nothing was found and healed")
		}
		for _, name := range []string{group, "control"} {
			g, err := f.Nodes[0].Client.Group(ctx, name)
			if err != nil {
				return err
			}
			for _, r := range g.Replicas {
				if r.Mode != "live" || r.Role != "leader" && r.Role != "follower" {
					return fmt.Errorf("%s: %s is %s, %s: %s", name, r.Node, r.Role, r.Mode, r.Why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(bad.Log(), "does not vote") {
		t.Error("nobody was told")
	}
	write(t, bad, "d1/after", "healed")
	settle(t, ctx, f)
	// The healed replica is one to rely on: with one of the others away, it is half of the majority.
	if err := f.Nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	write(t, bad, "d2/after", "needed")
	arrives(t, ctx, f.Nodes[1], "d2/after")
	restart(t, ctx, f, f.Nodes[0], "")
	settle(t, ctx, f)
}

func arrives(t *testing.T, ctx context.Context, n *farm.Node, name string) {
	t.Helper()
	err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		_, err := os.Stat(filepath.Join(n.Tree, name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// flipBits changes bits of a log where something is written.
func flipBits(t *testing.T, dir string, bits int) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	flipped := 0
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var written []int
		for i, b := range content {
			if b != 0 {
				written = append(written, i)
			}
		}
		if len(written) == 0 {
			continue
		}
		for range bits {
			content[written[rng.IntN(len(written))]] ^= byte(1) << rng.IntN(8)
			flipped++
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if flipped == 0 {
		t.Fatal("there is no log")
	}
}

// TestDamageOfOneLogOfTwo: of two voters neither can be done without, so the damaged one keeps what it has and says what
// to do; after a recovery that the other begins, it heals.
func TestDamageOfOneLogOfTwo(t *testing.T) {
	ctx, f := start(t, 2)
	for i := range 20 {
		write(t, f.Nodes[i%2], fmt.Sprintf("d%d/f%d", i%4, i), strings.Repeat("z", 300*i))
	}
	settle(t, ctx, f)
	sound, bad := f.Nodes[0], f.Nodes[1]
	if err := bad.Stop(); err != nil {
		t.Fatal(err)
	}
	damageGroup(t, ctx, bad.Data, group)
	if err := f.Run(bad, ""); err != nil {
		t.Fatal(err)
	}
	replicaOfBad := func() (api.Replica, error) {
		g, err := sound.Client.Group(ctx, group)
		i := slices.IndexFunc(g.Replicas, func(r api.Replica) bool { return r.Node == bad.Name })
		if err != nil || i < 0 {
			return api.Replica{}, fmt.Errorf("no account of %s: %w", bad.Name, err)
		}
		return g.Replicas[i], nil
	}
	soon, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := farm.Poll(soon, 50*time.Millisecond, func() error {
		r, err := replicaOfBad()
		if err == nil && (r.Mode != "damaged" || !strings.Contains(r.Why, "keeps its state") || !strings.Contains(r.Why, "group recover")) {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(bad.Log(), "begins again") {
		t.Fatal("it gave up what the other one cannot replace")
	}
	err = farm.Poll(ctx, 100*time.Millisecond, func() error { // the sound one believes to lead for an election timeout
		_, err := sound.Client.GroupRecover(ctx, group, api.GroupRecover{Confirm: group})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel = context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = farm.Poll(soon, 50*time.Millisecond, func() error {
		r, err := replicaOfBad()
		if err == nil && r.Mode != "live" {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, bad, "d1/after", "healed")
	settle(t, ctx, f)
}

// TestDamagedPartOfALeftGroup: a node whose log of a group is damaged has been unbound from it meanwhile. Nothing of the
// group runs there again, and what is left of it is released.
func TestDamagedPartOfALeftGroup(t *testing.T) {
	ctx, f := start(t, 3)
	for i := range 20 {
		write(t, f.Nodes[i%3], fmt.Sprintf("d%d/f%d", i%4, i), strings.Repeat("z", 300*i))
	}
	settle(t, ctx, f)
	bad := f.Nodes[2]
	if err := bad.Stop(); err != nil {
		t.Fatal(err)
	}
	damageGroup(t, ctx, bad.Data, group)
	run(t, f, f.Nodes[0], "dir", "unbind", group, bad.Name)
	restart(t, ctx, f, bad, "")
	soon, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := farm.Poll(soon, 50*time.Millisecond, func() error {
		if !strings.Contains(bad.Log(), "group released") {
			return errors.New("nothing was released")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(bad.Log(), "log damaged") {
		t.Error("the damage was not met")
	}
	if _, err := os.Stat(filepath.Join(bad.Tree, "d1")); err != nil {
		t.Errorf("its files did not stay: %v", err)
	}
}

// damageGroup flips a bit of one of a group's writes in each segment of the log of a stopped node.
func damageGroup(t *testing.T, ctx context.Context, data, name string) {
	t.Helper()
	out, err := exec.CommandContext(ctx, binary, "offline", "log", "dump", "--data", data, "--group", name, "-o", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var dump api.LogDump
	if err := json.Unmarshal(out, &dump); err != nil {
		t.Fatal(err)
	}
	flipped := 0
	for _, seg := range dump.Segments {
		path := filepath.Join(data, "log", seg.File)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var writes []api.LogSection
		for _, frame := range seg.Frames {
			for _, s := range frame.Sections {
				if s.Kind == "write" && s.Group == name && frame.Kind == "batch" {
					writes = append(writes, s)
				}
			}
		}
		if len(writes) > 2 { // of several in a row it could not be told whose they were
			s := writes[len(writes)/2]
			content[s.Offset+s.Bytes/2] ^= 4
			flipped++
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if flipped == 0 {
		t.Fatal("nothing to damage")
	}
}

// TestATornLogHealsByItself: the last record of a node that was killed is cut off in the middle.
func TestATornLogHealsByItself(t *testing.T) {
	ctx, f := start(t, 3)
	write(t, f.Nodes[0], "a", "1")
	settle(t, ctx, f)
	torn := f.Nodes[1]
	if err := torn.Kill(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(torn.Data, "log", "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		end := len(content)
		for end > 0 && content[end-1] == 0 {
			end--
		}
		clear(content[max(0, end-40):end])
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restart(t, ctx, f, torn, "")
	write(t, torn, "b", "2")
	settle(t, ctx, f)
	if log := torn.Log(); strings.Contains(log, "damaged") {
		t.Errorf("a torn write was taken for damage:\n%s", log)
	}
}

// grow writes files whose contents ride in the log, more than stays in memory of it, on a node; caught up is called after
// every few. It returns what stands in the log in a place that is not in memory any more.
func grow(t *testing.T, n *farm.Node, caughtUp func(name string)) (text string) {
	t.Helper()
	for i := range 400 {
		name := fmt.Sprintf("big/f%03d", i)
		write(t, n, name, strings.Repeat(fmt.Sprintf("%s-%d ", name, os.Getpid()), 15_000/18))
		if i%4 == 3 {
			caughtUp(name)
		}
	}
	return fmt.Sprintf("big/f%03d-%d ", 20, os.Getpid())
}

// rotLog alters a byte of a text wherever it stands in the log of a node that runs.
func rotLog(t *testing.T, n *farm.Node, text string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(n.Data, "log", "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Index(string(content), text)
		if at < 0 {
			continue
		}
		found = true
		seg, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = seg.WriteAt([]byte{content[at] ^ 4}, int64(at))
		if err := errors.Join(err, seg.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if !found {
		t.Fatal("it does not stand in the log")
	}
}

// TestDamageWhileALeaderRuns: the leader cannot read any more what a voter lacks that was down. The voter gets the state,
// writes go on, and the leader begins again under another id.
func TestDamageWhileALeaderRuns(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 3)
	bad, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc(slices.Clone(f.Nodes), func(n *farm.Node) bool { return n == bad })
	sound, down := rest[0], rest[1]
	if err := down.Stop(); err != nil {
		t.Fatal(err)
	}
	rotLog(t, bad, grow(t, bad, func(name string) { arrives(t, ctx, sound, name) }))
	restart(t, ctx, f, down, "")
	write(t, sound, "meanwhile", "1")
	arrives(t, ctx, down, "meanwhile")
	soon, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	err = farm.Poll(soon, 50*time.Millisecond, func() error {
		if !strings.Contains(bad.Log(), "begins again under another id") {
			return errors.New("nothing was found and healed")
		}
		g, err := sound.Client.Group(ctx, group)
		for _, r := range g.Replicas {
			if r.Mode != "live" || r.Role != "leader" && r.Role != "follower" {
				err = errors.Join(err, fmt.Errorf("%s is %s, %s: %s", r.Node, r.Role, r.Mode, r.Why))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if log := bad.Log(); !strings.Contains(log, "the log is damaged") || !strings.Contains(log, "steps aside") {
		t.Error("nobody was told")
	}
	write(t, bad, "after", "healed")
	settle(t, ctx, f)
}

// TestDamageWhileASoleVoterRuns: the only voter cannot read any more what an observer lacks. The observer gets the state;
// the voter goes on, warns, and begins again once others vote who can do without it.
func TestDamageWhileASoleVoterRuns(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 3)
	bad := f.Nodes[0]
	run(t, f, bad, "group", "members", group, "demote", "n2")
	run(t, f, bad, "group", "members", group, "demote", "n3")
	settle(t, ctx, f)
	down := f.Nodes[1]
	if err := down.Stop(); err != nil {
		t.Fatal(err)
	}
	rotLog(t, bad, grow(t, bad, func(name string) { arrives(t, ctx, f.Nodes[2], name) }))
	restart(t, ctx, f, down, "")
	settle(t, ctx, f)
	warned := func() bool {
		s, err := f.Nodes[2].Client.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Warnings, func(w api.Warning) bool {
			return w.Name == "log_damaged" && strings.Contains(w.Subject, bad.Name) && strings.Contains(w.Hint, "promote")
		})
	}
	poll := func(what string, is func() bool) {
		t.Helper()
		soon, cancel := context.WithTimeout(ctx, 40*time.Second)
		defer cancel()
		if err := farm.Poll(soon, 50*time.Millisecond, func() error {
			if !is() {
				return errors.New(what)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	poll("nobody is warned", warned)
	if n := strings.Count(down.Log(), "feed ended"); n > 5 {
		t.Errorf("the observer was sent away %d times", n)
	}
	write(t, bad, "still", "it goes on")
	settle(t, ctx, f)
	run(t, f, bad, "group", "members", group, "promote", "n2")
	run(t, f, bad, "group", "members", group, "promote", "n3")
	poll("it does not begin again", func() bool { return strings.Contains(bad.Log(), "begins again under another id") })
	poll("it is still warned of", func() bool { return !warned() })
	write(t, bad, "after", "healed")
	settle(t, ctx, f)
}
