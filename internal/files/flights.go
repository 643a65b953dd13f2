package files

import (
	"context"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Changes leave in flights: what goes into one command, from the staging of its contents to its outcome. Large contents,
// above content.SmallMax, have flights of their own, which may last for minutes: what is small never waits for them. A
// flight of either kind takes what has gathered while there was none free.
const (
	largeFlights = 4        // in flight
	largeBytes   = 64 << 20 // of contents in one of several files
	largeChanges = 256      // in one
	largeWaiting = 4096     // findings that wait for one; with more, nothing is taken from the readers
)

// batch is what goes into one command.
type batch struct {
	found []finding
	bytes int
}

func (b *batch) add(f finding) {
	b.found = append(b.found, f)
	b.bytes += len(f.data) + len(f.change.Path) + 64
}

func (b *batch) full() bool { return len(b.found) >= batchChanges || b.bytes >= batchBytes }

// gathering makes flights of what the readers found. A file that is gone while its large content is on its way under
// another name was moved: its removal waits, so that the members still have the content when it is offered to them.
type gathering struct {
	a      *Agent
	ctx    context.Context
	flying sync.WaitGroup
	landed chan landing

	small   batch
	smallUp int // flights
	large   []finding
	largeUp int
	aloft   map[manifest.Hash]int       // contents in large and in the flights, and how often
	removed map[manifest.Hash][]finding // removals of files that wait for these
	waiting int                         // in large and removed
}

// landing is a flight's end.
type landing struct {
	large    bool
	contents []manifest.Hash // of a large one
}

// gatherLoop sends flights off until the end.
func (a *Agent) gatherLoop(ctx context.Context) {
	g := &gathering{a: a, ctx: ctx, landed: make(chan landing, batchesMax+largeFlights),
		aloft: map[manifest.Hash]int{}, removed: map[manifest.Hash][]finding{}}
	defer g.flying.Wait()
	results := a.results
	for results != nil || (len(g.small.found) > 0 || len(g.large) > 0) && ctx.Err() == nil {
		in := results
		if g.full() {
			in = nil
		}
		select {
		case found, ok := <-in:
			if !ok {
				results = nil
				continue
			}
			g.add(found)
		case l := <-g.landed:
			g.land(l)
		}
		if !g.takeReady(results) {
			results = nil
		}
		g.sendSmall()
		g.sendLarge()
	}
}

func (g *gathering) full() bool { return g.small.full() || g.waiting >= largeWaiting }

// takeReady takes whatever is ready; false when nothing will come any more.
func (g *gathering) takeReady(in <-chan []finding) (open bool) {
	for !g.full() {
		select {
		case found, ok := <-in:
			if !ok {
				return false
			}
			g.add(found)
		default:
			return true
		}
	}
	return true
}

func (g *gathering) add(found []finding) {
	g.a.status.pending.Add(int64(len(found)))
	for i := range found { // first: a removal may come before what it waits for
		if f := &found[i]; f.isLarge() {
			g.aloft[f.change.Node.Hash]++
			g.large = append(g.large, *f)
			g.waiting++
		}
	}
	for i := range found {
		f := &found[i]
		switch {
		case f.isLarge():
		case f.deletesFile() && g.aloft[f.old.Hash] > 0:
			g.removed[f.old.Hash] = append(g.removed[f.old.Hash], *f)
			g.waiting++
		default:
			g.small.add(*f)
		}
	}
}

// isLarge says whether the change brings a large content, as far as its author knows.
func (f *finding) isLarge() bool {
	n := &f.change.Node
	return n.Kind == manifest.File && n.Size > content.SmallMax && !f.sameContent()
}

// sameContent says whether what stands has this content already.
func (f *finding) sameContent() bool {
	return f.old.Stat.Kind == manifest.File && f.old.Hash == f.change.Node.Hash && f.old.Version != 0
}

// land ends a flight; removals that no content on its way holds up any more are small changes like others.
func (g *gathering) land(l landing) {
	if !l.large {
		g.smallUp--
		return
	}
	g.largeUp--
	for _, h := range l.contents {
		if g.aloft[h]--; g.aloft[h] > 0 {
			continue
		}
		delete(g.aloft, h)
		for _, f := range g.removed[h] {
			g.small.add(f)
			g.waiting--
		}
		delete(g.removed, h)
	}
}

// sendSmall sends the first at once; while flights are up, the next one fills.
func (g *gathering) sendSmall() {
	if len(g.small.found) == 0 || g.smallUp > 0 && (!g.small.full() || g.smallUp == batchesMax) {
		return
	}
	going := g.small.found
	g.small = batch{}
	g.smallUp++
	g.send(going, landing{})
}

// sendLarge sends what it can: a file of more than largeBytes goes alone.
func (g *gathering) sendLarge() {
	for len(g.large) > 0 && g.largeUp < largeFlights {
		var going []finding
		l := landing{large: true}
		for size := int64(0); len(g.large) > 0 && len(going) < largeChanges; {
			f := &g.large[0]
			if size += f.change.Node.Size; size > largeBytes && len(going) > 0 {
				break
			}
			going, l.contents = append(going, *f), append(l.contents, f.change.Node.Hash)
			g.large = g.large[1:]
		}
		g.waiting -= len(going)
		g.largeUp++
		g.send(going, l)
	}
}

func (g *gathering) send(going []finding, l landing) {
	g.flying.Go(func() {
		g.a.propose(g.ctx, going)
		g.landed <- l
	})
}
