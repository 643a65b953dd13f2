package test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// history is what clients of the public API did and saw. Two kinds of objects in it are linearizable by what the
// documentation promises:
//
// A *file with one author* is a register. A write is: put the new content in place on the author's node, then
// `dir wait --quorum` until it is answered (again after a failure, so a write that was begun has an end). A read is:
// `dir wait --node N` at another node N, then read the file there. What a wait was told is on N's disk was
// committed, so a read may not go back behind a write that had ended, nor behind what an earlier read has seen. The
// author's own disk is not read: it shows the content before it is committed.
//
// A *name of a group* is a register that is set once. `dir create` of the same name is asked at all nodes at once:
// one may succeed, and only after one has may others be told that the name is taken. A create of unknown fate
// may have taken the name at any later time.
//
// All else that the API shows comes from a node's own copy, which may be older.
type history struct {
	farm   *farm.Farm
	places []farm.Place
	start  time.Time

	mu     sync.Mutex
	files  []porcupine.Operation
	names  []porcupine.Operation
	values []int // last written, by author
	failed int   // reads and creates without an answer
}

// access is an operation's input: on a file with one author a write or a read, on a name a claim.
type access struct {
	object string
	write  bool
	value  int // written, or who claims
}

// Outputs of a claim.
const (
	claimWon = iota
	claimTaken
	claimUnknown
)

func newHistory(f *farm.Farm, places []farm.Place) *history {
	return &history{farm: f, places: places, start: time.Now(), values: make([]int, len(f.Nodes))}
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

func (h *history) add(to *[]porcupine.Operation, client int, in access, call int64, out int) {
	end := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	*to = append(*to, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

// begin has clients work until stop is called.
func (h *history) begin(ctx context.Context, length time.Duration) (stop func()) {
	over := make(chan struct{})
	var wait sync.WaitGroup
	for i := range h.farm.Nodes {
		wait.Go(func() { h.author(ctx, i, over) })
		wait.Go(func() { h.reader(ctx, i, over) })
	}
	wait.Go(func() { h.claims(ctx, max(3*time.Second, length/40), over) })
	return func() { close(over); wait.Wait() }
}

func register(author int) string { return fmt.Sprintf("register-%d", author) }

// author writes one value after the other.
func (h *history) author(ctx context.Context, i int, over <-chan struct{}) {
	n := h.farm.Nodes[i]
	for {
		select {
		case <-over:
			return
		case <-time.After(20 * time.Millisecond):
		}
		next := h.values[i] + 1
		aside := filepath.Join(h.places[i].Dir, "aside", "next")
		if os.WriteFile(aside, []byte(strconv.Itoa(next)), 0o644) != nil {
			continue // no room: nothing has happened
		}
		call := h.now()
		if os.Rename(aside, filepath.Join(n.Tree, register(i))) != nil {
			continue
		}
		h.values[i] = next
		for !waitFor(ctx, n, api.DirWaitFor{Mode: api.WaitQuorum, Timeout: "5s"}) && ctx.Err() == nil {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		if ctx.Err() == nil {
			h.add(&h.files, i, access{register(i), true, next}, call, 0)
		}
	}
}

// reader reads the files of the others on node i.
func (h *history) reader(ctx context.Context, i int, over <-chan struct{}) {
	rng := rand.New(rand.NewPCG(*seed, uint64(i)))
	for {
		select {
		case <-over:
			return
		case <-time.After(20 * time.Millisecond):
		}
		author := rng.IntN(len(h.farm.Nodes))
		if author != i {
			h.read(ctx, i, author)
		}
	}
}

func (h *history) read(ctx context.Context, i, author int) {
	n, call := h.farm.Nodes[i], h.now()
	value, ok := 0, false
	if waitFor(ctx, n, api.DirWaitFor{Mode: api.WaitNode, Node: n.Name, Timeout: "5s"}) {
		b, err := os.ReadFile(filepath.Join(n.Tree, register(author)))
		if err == nil {
			value, err = strconv.Atoi(string(b))
		}
		ok = err == nil || errors.Is(err, fs.ErrNotExist)
		if !ok {
			value, ok = -1, true // whatever this is, nobody wrote it
		}
	}
	if !ok {
		h.mu.Lock()
		h.failed++
		h.mu.Unlock()
		return
	}
	h.add(&h.files, len(h.farm.Nodes)+i, access{object: register(author)}, call, value)
}

// claims has all nodes claim one name after the other.
func (h *history) claims(ctx context.Context, every time.Duration, over <-chan struct{}) {
	for round := 0; ; round++ {
		select {
		case <-over:
			return
		case <-time.After(every):
		}
		each(h.farm, func(i int, _ *farm.Node) { h.claim(ctx, fmt.Sprintf("name-%d", round), i) })
	}
}

func (h *history) claim(ctx context.Context, name string, i int) {
	n := h.farm.Nodes[i]
	dir := filepath.Join(h.places[i].Dir, "aside", name)
	if os.Mkdir(dir, 0o755) != nil {
		return
	}
	call := h.now()
	_, err := n.Client.DirCreate(ctx, api.DirCreate{Name: name, Paths: map[string]string{n.Name: dir}})
	switch {
	case err == nil:
		h.add(&h.names, i, access{name, true, i + 1}, call, claimWon)
	case errors.Is(err, &api.Error{Code: api.CodeConflict}):
		h.add(&h.names, i, access{name, true, i + 1}, call, claimTaken)
	default:
		h.add(&h.names, i, access{name, true, i + 1}, call, claimUnknown)
	}
}

// finalReads has every node say what it holds in the end.
func (h *history) finalReads(ctx context.Context) {
	for i := range h.farm.Nodes {
		for author := range h.farm.Nodes {
			if i != author {
				h.read(ctx, i, author)
			}
		}
	}
}

func byObject(all []porcupine.Operation) (parts [][]porcupine.Operation) {
	at := map[string]int{}
	for _, op := range all {
		object := op.Input.(access).object
		if _, ok := at[object]; !ok {
			at[object] = len(parts)
			parts = append(parts, nil)
		}
		parts[at[object]] = append(parts[at[object]], op)
	}
	return parts
}

func zero() any { return 0 }

func same(a, b any) bool { return a == b }

// fileModel is a file with one author: the state is the value that it holds.
var fileModel = porcupine.Model{Partition: byObject, Init: zero, Equal: same, Step: func(state, input, output any) (bool, any) {
	in := input.(access)
	if in.write {
		return true, in.value
	}
	return state == output, state
}}

// nameModel is a name that is taken once: the state is by whom. A claim of unknown fate may have been too late; it
// then changes nothing, so it may also stand for one that never happened.
var nameModel = porcupine.Model{Partition: byObject, Init: zero, Equal: same, Step: func(state, input, output any) (bool, any) {
	in := input.(access)
	switch output {
	case claimWon:
		return state == 0, in.value
	case claimTaken:
		return state != 0, state
	}
	if state == 0 {
		return true, in.value
	}
	return true, state
}}

// check judges the whole history.
func (h *history) check(t *testing.T) {
	t.Helper()
	for i, op := range h.names {
		if op.Output == claimUnknown {
			h.names[i].Return = h.now() // it may take effect at any time
		}
	}
	for _, part := range byObject(h.files) {
		if !porcupine.CheckOperations(fileModel, part) {
			t.Errorf("a file with one author is not linearizable: %s", contradictions(part))
		}
	}
	for _, part := range byObject(h.names) {
		if !explained(part) {
			t.Errorf("a name was taken twice, or refused while it was free: %+v", part)
		}
	}
}

// explained says whether some claims of unknown fate, and not the others, have happened such that the rest holds.
func explained(part []porcupine.Operation) bool {
	var known, open []porcupine.Operation
	for _, op := range part {
		if op.Output == claimUnknown {
			open = append(open, op)
		} else {
			known = append(known, op)
		}
	}
	for set := range 1 << len(open) {
		ops := append([]porcupine.Operation(nil), known...)
		for i, op := range open {
			if set>>i&1 == 1 {
				ops = append(ops, op)
			}
		}
		if porcupine.CheckOperations(nameModel, ops) {
			return true
		}
	}
	return false
}

// contradictions of a file with one author, whose values grow: reads that go back behind a write that had ended, or
// behind another read, and reads of what was not written yet.
func contradictions(part []porcupine.Operation) string {
	var out strings.Builder
	show := func(what string, a, b porcupine.Operation) {
		fmt.Fprintf(&out, "\n  %s: client %d %d–%d ms %+v saw %v; client %d %d–%d ms %+v saw %v", what,
			a.ClientId, a.Call/1e6, a.Return/1e6, a.Input, a.Output, b.ClientId, b.Call/1e6, b.Return/1e6, b.Input, b.Output)
	}
	holds := func(op porcupine.Operation) int {
		if in := op.Input.(access); in.write {
			return in.value
		}
		return op.Output.(int)
	}
	for _, later := range part {
		if later.Input.(access).write {
			continue
		}
		var worst *porcupine.Operation
		for i, before := range part {
			if before.Return < later.Call && holds(before) > holds(later) && (worst == nil || holds(before) > holds(*worst)) {
				worst = &part[i]
			}
			if in := before.Input.(access); in.write && in.value == later.Output && before.Call > later.Return {
				show("read before it was written", later, before)
			}
		}
		if worst != nil {
			show("goes back", *worst, later)
		}
	}
	return out.String()
}

// counts says how much was done.
func (h *history) counts() map[string]int {
	out := map[string]int{"without an answer": h.failed}
	for _, op := range h.files {
		if op.Input.(access).write {
			out["file writes"]++
		} else {
			out["file reads"]++
		}
	}
	for _, op := range h.names {
		out["claims "+[]string{"won", "refused", "of unknown fate"}[op.Output.(int)]]++
	}
	return out
}
