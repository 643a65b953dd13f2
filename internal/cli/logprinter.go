package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-sync/lockstep/api"
)

// logPrinter prints an api.LogDump while its segments come, one at a time: there may be more of them than fit into memory.
// What is printed is what printing the whole would print.
type logPrinter struct {
	w       io.Writer
	json    bool
	head    api.LogDump
	rest    []byte // of the JSON, from the end of the segments on
	printed int    // segments
}

func newLogPrinter(w io.Writer, asJSON bool) *logPrinter { return &logPrinter{w: w, json: asJSON} }

// noSegments is how the JSON of a dump without segments says so.
const noSegments = `"segments": []`

// begin prints what comes before the segments; head has none.
func (p *logPrinter) begin(head api.LogDump) error {
	p.head = head
	if !p.json {
		if head.Refused == "" {
			return nil
		}
		return p.write([]byte("a start would refuse this log: " + head.Refused + "\n"))
	}
	var b bytes.Buffer
	if err := writeJSON(&b, head); err != nil {
		return err
	}
	before, rest, found := bytes.Cut(b.Bytes(), []byte(noSegments))
	if !found {
		return fmt.Errorf("a dump without segments is %s", b.Bytes())
	}
	p.rest = append([]byte("]"), rest...)
	return p.write(append(bytes.Clone(before), strings.TrimSuffix(noSegments, "]")...))
}

func (p *logPrinter) segment(s *api.LogSegment) error {
	if !p.json {
		var b strings.Builder
		segmentLines(&b, s)
		return p.write([]byte(b.String()))
	}
	const indent = "    "
	var b bytes.Buffer
	if p.printed++; p.printed > 1 {
		b.WriteByte(',')
	}
	b.WriteString("\n" + indent)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent(indent, "  ")
	if err := enc.Encode(s); err != nil {
		return err
	}
	return p.write(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// end prints what comes after them.
func (p *logPrinter) end() error {
	if !p.json {
		var b strings.Builder
		unnamed(&b, p.head.Unnamed)
		return p.write([]byte(b.String()))
	}
	if p.printed > 0 {
		p.rest = append([]byte("\n  "), p.rest...)
	}
	return p.write(p.rest)
}

func (p *logPrinter) write(b []byte) error {
	if _, err := p.w.Write(b); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
