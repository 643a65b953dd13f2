package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// show writes the demo's output: lines, and bars that are redrawn on a terminal and repeated as lines once
// a second elsewhere. Used from one goroutine.
type show struct {
	w        io.Writer
	terminal bool
	start    time.Time
	drawn    int // lines of bars that the cursor stands behind
	lastBars time.Time
}

const (
	barEvery  = 100 * time.Millisecond
	lineEvery = time.Second
	barWidth  = 32
)

func newShow(w io.Writer, terminal bool) *show {
	return &show{w: w, terminal: terminal, start: time.Now()}
}

// text writes s as it is. The error is dropped: there is no other place to say anything.
func (s *show) text(text string) { _, _ = io.WriteString(s.w, strings.TrimRight(text, "\n")+"\n") }

func (s *show) line(format string, args ...any) { s.text("  " + fmt.Sprintf(format, args...)) }

func (s *show) title(t string) {
	s.text(fmt.Sprintf("\n%s  (%s)", t, time.Since(s.start).Round(100*time.Millisecond)))
}

// end leaves bars behind as they are.
func (s *show) end() { s.drawn = 0 }

// bar is one node's progress.
type bar struct {
	name  string
	have  tally
	total tally
	note  string
}

func (b bar) String() string {
	part := 1.0
	if b.total.bytes > 0 {
		part = min(1, float64(b.have.bytes)/float64(b.total.bytes))
	}
	full := int(part * barWidth)
	return fmt.Sprintf("  %-3s [%s%s] %3.0f%%  %s  %s", b.name, strings.Repeat("█", full), strings.Repeat("░", barWidth-full),
		part*100, b.have, b.note)
}

func (b bar) finished() bool { return b.have.files >= b.total.files }

// bars shows all nodes' progress; final forces a last drawing.
func (s *show) bars(all []bar, final bool) {
	every := lineEvery
	if s.terminal {
		every = barEvery
	}
	if now := time.Now(); !final && now.Sub(s.lastBars) < every {
		return
	} else {
		s.lastBars = now
	}
	var b strings.Builder
	if s.terminal && s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	for _, one := range all {
		if s.terminal {
			b.WriteString("\x1b[2K")
		}
		b.WriteString(strings.TrimRight(one.String(), " ") + "\n")
	}
	s.drawn = len(all)
	if final {
		s.drawn = 0
	}
	_, _ = io.WriteString(s.w, b.String())
}

// counting shows a number that grows, on a terminal only.
func (s *show) counting(t tally, what string) {
	now := time.Now()
	if !s.terminal || now.Sub(s.lastBars) < barEvery {
		return
	}
	s.lastBars = now
	up := ""
	if s.drawn > 0 {
		up = "\x1b[1A\x1b[2K"
	}
	s.drawn = 1
	_, _ = fmt.Fprintf(s.w, "%s  %s %s\n", up, t, what)
}

// uncount removes what counting has drawn.
func (s *show) uncount() {
	if s.drawn > 0 {
		_, _ = io.WriteString(s.w, "\x1b[1A\x1b[2K")
	}
	s.drawn = 0
}

// tally counts files and their bytes.
type tally struct{ files, bytes uint64 }

func (t tally) String() string {
	return fmt.Sprintf("%6d files %7.1f MB", t.files, float64(t.bytes)/1e6)
}

func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}
