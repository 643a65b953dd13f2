package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
)

// OfflineLog looks at the log of a node that is stopped, and changes nothing.
type OfflineLog interface {
	// Dump shows begin all but the segments, then each one of them at a time.
	Dump(ctx context.Context, want api.LogFilter, begin func(api.LogDump) error, each func(*api.LogSegment) error) error
	Verify(ctx context.Context) (api.LogVerified, error)
}

type logVerified api.LogVerified

func (a *app) offlineLog() *cobra.Command {
	return a.noun("log", "Look at the log of a node that is stopped", "  lockstep offline log verify --data /var/lib/lockstep",
		a.offlineLogDump(), a.offlineLogVerify())
}

// looking makes the body of a command that looks at the log below *data.
func (a *app) looking(data *string, look func(ctx context.Context, l OfflineLog) (result, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		p := a.newProgress()
		r, err := look(cmd.Context(), a.env.OfflineLog(*data, p.update))
		p.end()
		if err != nil {
			return err
		}
		return a.print(r)
	}
}

func (a *app) offlineLogDump() *cobra.Command {
	var data string
	var want api.LogFilter
	c := &cobra.Command{
		Use:   "dump --data DIR [--group GROUP] [--segment SEGMENT]",
		Short: "List what lies in the log of a stopped node",
		Long: `List the segments of the log of a node that is stopped, and what lies in each: position and size of
every frame, its batch, what it says about which group, and what does not check. Nothing is changed.
What does not check is damage only if acknowledged data is concerned: "verify" judges that.`,
		Example: `  lockstep offline log dump --data /var/lib/lockstep
  lockstep offline log dump --data /var/lib/lockstep --group web --segment 12`,
		Args: wants,
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		p := a.newProgress()
		defer p.end()
		out := newLogPrinter(a.env.Stdout, a.output == "json")
		printing := false // then what is printed shows how far it is
		log := a.env.OfflineLog(data, func(part api.Progress) {
			if !printing {
				p.update(part)
			}
		})
		err := log.Dump(cmd.Context(), want, func(head api.LogDump) error {
			printing = true
			p.end()
			return out.begin(head)
		}, out.segment)
		if err != nil {
			return err
		}
		return out.end()
	}
	c.Flags().StringVar(&data, "data", DefaultData, "data directory of the node")
	c.Flags().StringVar(&want.Group, "group", "", "only what is said about this group: its name or id")
	c.Flags().StringVar(&want.Segment, "segment", "", "only this segment: its sequence number or file name")
	return c
}

func (a *app) offlineLogVerify() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "verify --data DIR",
		Short: "Judge the log of a stopped node as its next start will",
		Long: `Read all of the log of a node that is stopped, and judge it as its next start will: what each group's
log holds, what is damaged, whom that concerns and what the start does about it. Nothing is changed.
Exits with 8 if acknowledged data is damaged; a write that was under way when the node went down is
not.`,
		Example: "  lockstep offline log verify --data /var/lib/lockstep",
		Args:    wants,
	}
	c.RunE = a.looking(&data, func(ctx context.Context, l OfflineLog) (result, error) {
		v, err := l.Verify(ctx)
		return logVerified(v), err
	})
	c.Flags().StringVar(&data, "data", DefaultData, "data directory of the node")
	return c
}

func (v logVerified) text(w io.Writer) error {
	rows := [][]string{{"GROUP", "ID", "ENTRIES", "TERM", "HARD STATE", "BYTES", "STATE"}}
	for _, g := range v.Groups {
		row := []string{orDash(g.Group), fmt.Sprint(g.ID), "none", fmt.Sprint(g.Last.Term), hardState(g.Hard), size(g.Bytes), "sound"}
		if g.Last.Index >= g.First {
			row[2] = fmt.Sprintf("%d to %d", g.First, g.Last.Index)
		}
		if g.Damaged != "" {
			row = []string{row[0], row[1], "-", "-", "-", "-", "damaged"}
		}
		rows = append(rows, row)
	}
	var b strings.Builder
	if len(v.Groups) > 0 {
		if err := table(&b, rows); err != nil {
			return err
		}
	}
	for _, g := range v.Groups {
		if g.Damaged != "" {
			fmt.Fprintf(&b, "%s is damaged: %s\n  next start: %s\n", groupLabel(g.Group, g.ID), g.Damaged, g.Next)
		}
	}
	for _, p := range v.Problems {
		fmt.Fprintf(&b, "%s: ", p.Kind)
		if p.File != "" {
			fmt.Fprintf(&b, "%s at %d: ", p.File, p.Offset)
		}
		b.WriteString(p.What)
		if len(p.Groups) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(p.Groups, ", "))
		}
		b.WriteString("\n")
		if p.Kind == "note" || len(p.Groups) == 0 { // of damaged groups it stands above
			fmt.Fprintf(&b, "  next start: %s\n", p.Next)
		}
	}
	verdict := "sound"
	if !v.Sound {
		verdict = "damaged"
	}
	fmt.Fprintf(&b, "the log is %s: %s, %s in %s\n", verdict, count(uint64(len(v.Groups)), "group", "groups"), size(v.Bytes),
		count(uint64(v.Segments), "segment", "segments"))
	unnamed(&b, v.Unnamed)
	_, err := io.WriteString(w, b.String())
	return err
}

// verdict: damage is worth an exit status of its own.
func (v logVerified) verdict() error {
	if v.Sound {
		return nil
	}
	return &api.Error{Code: api.CodeDamage, Op: "offline log verify", Subject: v.Data, Why: "acknowledged data is damaged",
		Hint: "what the next start does about it stands above; docs/en/operations.md says what to do when a log is damaged"}
}

func unnamed(b *strings.Builder, why string) {
	if why != "" {
		fmt.Fprintf(b, "groups have no names here: %s\n", why)
	}
}

func segmentLines(b *strings.Builder, s *api.LogSegment) {
	fmt.Fprintf(b, "%s: ", s.File)
	if s.Segment == 0 {
		b.WriteString("unused")
	} else {
		fmt.Fprintf(b, "segment %d", s.Segment)
	}
	fmt.Fprintf(b, ", %s, %s", s.Part, size(s.Bytes))
	if s.LastBatch > 0 {
		fmt.Fprintf(b, ", batches %d to %d", s.FirstBatch, s.LastBatch)
	}
	if s.Live > 0 {
		fmt.Fprintf(b, ", %s of entries that count", size(s.Live))
	}
	if s.Old > 0 {
		fmt.Fprintf(b, ", %s left of an earlier use", count(uint64(s.Old), "frame", "frames"))
	}
	b.WriteString("\n")
	for i := range s.Frames {
		frameLines(b, &s.Frames[i])
	}
}

func frameLines(b *strings.Builder, f *api.LogFrame) {
	fmt.Fprintf(b, "  @%d %s", f.Offset, f.Kind)
	if f.Batch > 0 {
		fmt.Fprintf(b, " %d, synced to %d", f.Batch, f.Synced)
	}
	fmt.Fprintf(b, ", %d bytes", f.Bytes)
	switch {
	case f.Torn:
		b.WriteString(": TORN, it was being written when the node went down")
	case f.Damage != "":
		fmt.Fprintf(b, ": DAMAGED, %s", f.Damage)
	}
	b.WriteString("\n")
	for i := range f.Sections {
		sectionLine(b, &f.Sections[i])
	}
}

func sectionLine(b *strings.Builder, s *api.LogSection) {
	fmt.Fprintf(b, "    @%d ", s.Offset)
	if s.ID > 0 {
		fmt.Fprintf(b, "%s: ", groupLabel(s.Group, s.ID))
	}
	b.WriteString(s.Kind)
	for _, f := range s.Flags {
		fmt.Fprintf(b, ", %s", f)
	}
	if s.At != nil {
		fmt.Fprintf(b, ", at %s", position(*s.At))
	}
	if s.Hard != nil {
		fmt.Fprintf(b, ", hard state %s", hardState(*s.Hard))
	}
	if s.First != nil && s.Last != nil && *s.First == *s.Last {
		fmt.Fprintf(b, ", entry %s", position(*s.First))
	} else if s.First != nil && s.Last != nil {
		fmt.Fprintf(b, ", entries %s to %s", position(*s.First), position(*s.Last))
	}
	if len(s.Segments) > 0 {
		fmt.Fprintf(b, ", segments %s", strings.Trim(fmt.Sprint(s.Segments), "[]"))
	}
	if s.Owner != "" {
		fmt.Fprintf(b, ", %s", s.Owner)
	}
	fmt.Fprintf(b, ", %d bytes", s.Bytes)
	if s.Damage != "" {
		fmt.Fprintf(b, ": DAMAGED, %s", s.Damage)
	}
	b.WriteString("\n")
}

func groupLabel(name string, id uint64) string {
	if name == "" {
		return fmt.Sprintf("group %d", id)
	}
	return name
}

// position is index and, if it is said, term.
func position(p api.LogPosition) string {
	if p.Term == 0 {
		return fmt.Sprint(p.Index)
	}
	return fmt.Sprintf("%d (term %d)", p.Index, p.Term)
}

func hardState(h api.LogHardState) string {
	vote := "no vote"
	if h.Vote > 0 {
		vote = fmt.Sprintf("vote %d", h.Vote)
	}
	return fmt.Sprintf("term %d, %s, commit %d", h.Term, vote, h.Commit)
}
