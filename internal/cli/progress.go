package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/lockstep-sync/lockstep/api"
)

// Nothing is shown of what takes less than quiet; then a terminal is redrawn, a log gets a line.
const (
	quiet      = time.Second
	redraw     = 100 * time.Millisecond
	logEvery   = 5 * time.Second
	barColumns = 30
)

// progress shows how far a long operation is: a bar on a terminal, a line now and then elsewhere. Used from
// one goroutine.
type progress struct {
	w      io.Writer
	tty    bool
	now    func() time.Time
	start  time.Time
	next   time.Time               // not before
	what   string                  // the step that parts are of
	parts  map[string]api.Progress // by node
	onLine bool                    // the terminal's cursor stands behind a bar
}

func newProgress(w io.Writer, now func() time.Time) *progress {
	p := &progress{w: w, tty: isTerminal(w), now: now, start: now(), parts: map[string]api.Progress{}}
	p.next = p.start.Add(quiet)
	return p
}

// newProgress is the progress of this run's command, which has no need of awaiting's word then.
func (a *app) newProgress() *progress {
	a.telling.Store(true)
	return newProgress(a.env.Stderr, time.Now)
}

// awaiting says once that the answer of a node is awaited, if it takes long and the command does not show its progress.
// The function that it returns has to be called when the answer is there; nothing is said any more after that.
func (a *app) awaiting(server string) (answered func()) {
	said := make(chan struct{})
	word := time.AfterFunc(quiet, func() {
		defer close(said)
		if !a.telling.Load() {
			_, _ = fmt.Fprintf(a.env.Stderr, "waiting for the answer of %s\n", server) // a courtesy, as progress is
		}
	})
	return func() {
		if !word.Stop() {
			<-said
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (p *progress) update(part api.Progress) {
	if part.What != p.what { // the next step of the operation counts anew
		p.what = part.What
		clear(p.parts)
	}
	p.parts[part.Node] = part
	now := p.now()
	if now.Before(p.next) {
		return
	}
	if !p.tty {
		p.next = now.Add(logEvery)
		p.write(fmt.Sprintf("%s after %s\n", p.line(part, false), now.Sub(p.start).Round(time.Second)))
		return
	}
	p.next = now.Add(redraw)
	p.onLine = true
	p.write("\r\x1b[K" + p.line(part, true))
}

// end removes the bar.
func (p *progress) end() {
	if p.onLine {
		p.write("\r\x1b[K")
		p.onLine = false
	}
}

// write drops the error: progress is a courtesy, the result tells.
func (p *progress) write(s string) { _, _ = io.WriteString(p.w, s) }

func (p *progress) line(last api.Progress, bar bool) string {
	var done, total uint64
	known := true
	var nodes []string
	for node, part := range p.parts {
		done += part.Done
		total += part.Total
		known = known && part.Total > 0
		if node != "" && part.Total > 0 {
			nodes = append(nodes, fmt.Sprintf("%s %d%%", node, percent(part.Done, part.Total)))
		}
	}
	slices.Sort(nodes)
	var b strings.Builder
	b.WriteString(last.What)
	if bar && known {
		full := barColumns * percent(done, total) / 100
		fmt.Fprintf(&b, " [%s%s]", strings.Repeat("█", full), strings.Repeat("░", barColumns-full))
	}
	if known {
		part := thousands(done)
		if last.Unit == "bytes" {
			part = size(done)
		}
		fmt.Fprintf(&b, " %d%%: %s of %s", percent(done, total), part, amount(total, last.Unit))
	} else {
		fmt.Fprintf(&b, ": %s", amount(done, last.Unit))
	}
	if len(nodes) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(nodes, ", "))
	}
	return b.String()
}

func percent(done, total uint64) int {
	if total == 0 || done >= total {
		return 100
	}
	return int(float64(done) / float64(total) * 100)
}

func amount(n uint64, unit string) string {
	if unit == "bytes" {
		return size(n)
	}
	return thousands(n) + " " + unit
}
