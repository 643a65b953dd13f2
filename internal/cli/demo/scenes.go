package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

const (
	editName     = "edited-by-the-demo.txt"
	conflictName = "written-on-two-nodes.txt"
	// meanwhileName is the directory of what changes while a node is down; the next free name if there is one.
	meanwhileName = "while-one-was-dead"
	// glance is how often the demo looks for an edit's arrival: its measured times are at most this much too long.
	glance = 200 * time.Microsecond
	// edits is how many are timed after the first.
	edits = 20
	// conflictTries bounds the attempts to make two nodes write at the same moment.
	conflictTries = 50
)

// edit writes a file on node 1 and measures when the others have it.
func (r *run) edit(ctx context.Context) error {
	first := r.nodes[0]
	content := fmt.Sprintf("Written on %s at %s.\n%s", first.name, time.Now().Format(time.RFC3339Nano), strings.Repeat("Some text. ", 450))
	began := time.Now()
	if err := first.write(editName, content); err != nil {
		return err
	}
	took, err := r.arrival(ctx, r.others(first), editName, content, began)
	if err != nil {
		return err
	}
	var parts []string
	for i, n := range r.others(first) {
		parts = append(parts, fmt.Sprintf("on %s after %s", n.name, ms(took[i])))
	}
	r.show.line("%s, %d bytes, written on %s: readable %s", editName, len(content), first.name, strings.Join(parts, ", "))
	return r.moreEdits(ctx)
}

// moreEdits shows what is usual: a single time may be luck.
func (r *run) moreEdits(ctx context.Context) error {
	var all []time.Duration
	for i := range edits {
		from := r.nodes[i%len(r.nodes)]
		name := "edited-on-" + from.name + ".txt"
		content := fmt.Sprintf("Edit %d, written on %s.\n", i, from.name)
		began := time.Now()
		if err := from.write(name, content); err != nil {
			return err
		}
		took, err := r.arrival(ctx, r.others(from), name, content, began)
		if err != nil {
			return err
		}
		all = append(all, took...)
	}
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	r.show.line("%d more edits, from every node in turn: median %s, slowest %s", edits, ms(all[len(all)/2]), ms(all[len(all)-1]))
	return nil
}

// others lists the running nodes except not.
func (r *run) others(not *node) []*node {
	return slices.DeleteFunc(r.alive(), func(n *node) bool { return n == not })
}

// arrival returns how long after began each node has the content.
func (r *run) arrival(ctx context.Context, nodes []*node, name, content string, began time.Time) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	took := make([]time.Duration, len(nodes))
	left := len(nodes)
	err := until(ctx, glance, "the edit has arrived", func() (bool, error) {
		for i, n := range nodes {
			if took[i] != 0 {
				continue
			}
			got, err := n.read(name)
			if err != nil {
				return false, err
			}
			if got == content {
				took[i] = time.Since(began)
				left--
			}
		}
		return left == 0, nil
	})
	return took, err
}

// kill ends the leader with SIGKILL and measures when the next edit has arrived everywhere that lives.
func (r *run) kill(ctx context.Context) error {
	leader, err := r.leader(ctx)
	if err != nil {
		return err
	}
	living := r.others(leader)
	content := "Written after the leader was killed.\n"
	began := time.Now()
	leader.kill()
	if err := living[0].write(editName, content); err != nil {
		return err
	}
	r.show.line("%s led the group; kill -9 %d; edited on %s at once", leader.name, leader.process.Pid, living[0].name)
	if len(r.nodes) < 3 {
		r.show.line("a cluster of two needs both: the edit waits for %s", leader.name)
		return nil
	}
	took, err := r.arrival(ctx, living[1:], editName, content, began)
	if err != nil {
		return err
	}
	next, err := r.leader(ctx)
	if err != nil {
		return err
	}
	r.show.line("%s leads now; the edit was on every living node %s after the kill", next.name, ms(slices.Max(took)))
	return r.meanwhile(living[0])
}

// meanwhile changes files that the dead node will have missed, in a directory that is not the user's.
func (r *run) meanwhile(n *node) error {
	dir := meanwhileName
	for i := 2; ; i++ {
		err := os.Mkdir(filepath.Join(n.dir, dir), 0o755)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write on %s: %w", n.name, err)
		}
		dir = fmt.Sprintf("%s-%d", meanwhileName, i)
	}
	for i := range 100 {
		if err := n.write(fmt.Sprintf("%s/%03d.txt", dir, i), strings.Repeat(fmt.Sprintf("file %d\n", i), 100)); err != nil {
			return err
		}
	}
	return nil
}

// leader asks until a running node leads the group.
func (r *run) leader(ctx context.Context) (*node, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var found *node
	err := until(ctx, poll, "the group has a leader", func() (bool, error) {
		for _, asked := range r.alive() {
			g, err := asked.client.Group(ctx, group)
			if err != nil {
				if err = passing(err); err != nil {
					return false, err
				}
				continue
			}
			for _, n := range r.alive() {
				if n.name == g.Leader {
					found = n
					return true, nil
				}
			}
		}
		return false, nil
	})
	return found, err
}

// comeBack starts the dead node again and shows how it catches up.
func (r *run) comeBack(ctx context.Context) error {
	i := slices.IndexFunc(r.nodes, func(n *node) bool { return !n.running() })
	dead := r.nodes[i]
	began := time.Now()
	if err := r.launch(dead, ""); err != nil {
		return err
	}
	r.show.line("%s started again", dead.name)
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	asked, shown := r.others(dead)[0], map[string]bool{}
	tell := func(mode, why string) {
		if now := strings.TrimSuffix(mode+": "+why, ": "); mode != "down" && !shown[now] {
			shown[now] = true
			r.show.line("%-7s %s", ms(time.Since(began)), now)
		}
	}
	err := until(ctx, poll/4, dead.name+" has caught up", func() (bool, error) {
		status, err := asked.client.DirStatus(ctx, group)
		if err != nil {
			return false, errors.Join(passing(err), r.anyDied())
		}
		at := slices.IndexFunc(status.Nodes, func(n api.DirNode) bool { return n.Node == dead.name })
		if at < 0 {
			return false, r.anyDied()
		}
		d := status.Nodes[at]
		tell(d.Mode, d.Why)
		return d.Mode == "live" && d.BehindFiles == 0 && d.Placed >= status.Position, r.anyDied()
	})
	if err != nil {
		return err
	}
	g, err := asked.client.Group(ctx, group)
	if err != nil {
		return err
	}
	for _, replica := range g.Replicas {
		if replica.Node == dead.name {
			why := replica.Why
			if !strings.Contains(why, replica.Mode) {
				why = replica.Mode + ": " + why
			}
			r.show.line("%s %s", dead.name, why)
		}
	}
	if err := r.answers(ctx, dead); err != nil {
		return err
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	r.show.line("%s holds everything again after %s", dead.name, ms(time.Since(began)))
	return nil
}

// conflict writes one file on two nodes at the same moment until that makes a conflict.
func (r *run) conflict(ctx context.Context) error {
	a, b := r.nodes[0], r.nodes[1]
	for try := 1; try <= conflictTries; try++ {
		before, err := a.client.DirConflicts(ctx, group)
		if err != nil {
			return err
		}
		texts := [2]string{fmt.Sprintf("%s's words, try %d\n", a.name, try), fmt.Sprintf("%s's words, try %d\n", b.name, try)}
		if err := writeBoth(a, b, texts); err != nil {
			return err
		}
		if err := r.settle(ctx); err != nil {
			return err
		}
		after, err := a.client.DirConflicts(ctx, group)
		if err != nil {
			return err
		}
		if len(after) > len(before) {
			return r.showConflict(after, texts, try)
		}
	}
	return fmt.Errorf("no conflict in %d tries of writing on two nodes at once", conflictTries)
}

func writeBoth(a, b *node, texts [2]string) error {
	start, first := make(chan struct{}), make(chan error, 1)
	go func() {
		<-start
		first <- a.write(conflictName, texts[0])
	}()
	close(start)
	return errors.Join(b.write(conflictName, texts[1]), <-first)
}

// showConflict finds both texts again, on every node.
func (r *run) showConflict(all []api.Conflict, texts [2]string, try int) error {
	var kept string
	for _, c := range all {
		raw, err := api.UnescapePath(c.Copy)
		if err != nil {
			return err
		}
		if text, err := r.nodes[0].read(raw); err != nil {
			return err
		} else if text == texts[0] || text == texts[1] {
			kept = raw
		}
	}
	if kept == "" {
		return errors.New("a conflict was reported, but no copy holds the other text")
	}
	for _, n := range r.nodes {
		winner, err := n.read(conflictName)
		if err != nil {
			return err
		}
		loser, err := n.read(kept)
		if err != nil {
			return err
		}
		if [2]string{winner, loser} != texts && [2]string{loser, winner} != texts {
			return fmt.Errorf("%s holds %q and %q", n.name, winner, loser)
		}
	}
	winner, err := r.nodes[0].read(conflictName)
	if err != nil {
		return err
	}
	loser, err := r.nodes[0].read(kept)
	if err != nil {
		return err
	}
	r.show.line("%s and %s wrote the same file at the same moment (try %d); nothing is lost, on any node:", r.nodes[0].name, r.nodes[1].name, try)
	r.show.line("  %-58s %q", conflictName, winner)
	r.show.line("  %-58s %q", api.EscapePath(kept), loser)
	return nil
}

// compare walks all trees, with nothing of Lockstep's, and demands that they are identical.
func (r *run) compare(ctx context.Context) error {
	if err := r.settle(ctx); err != nil {
		return err
	}
	var roots []string
	for _, n := range r.nodes {
		roots = append(roots, n.dir)
	}
	began := time.Now()
	diffs, paths, err := compareAll(ctx, roots)
	if err != nil {
		return err
	}
	total := 0
	for i, d := range diffs {
		total += len(d)
		for _, one := range d[:min(len(d), 10)] {
			r.show.line("%s: %s", r.nodes[i+1].name, api.EscapePath(one))
		}
	}
	if total > 0 {
		return &api.Error{Code: api.CodePartial, Op: "compare", Why: fmt.Sprintf("%d differences between the directories", total)}
	}
	r.show.line("identical on %d nodes: %d paths, every name, kind, mode, owner, time and byte (read in %s)", len(roots), paths,
		time.Since(began).Round(10*time.Millisecond))
	return nil
}
