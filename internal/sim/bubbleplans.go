package sim

import (
	"context"
	"log/slog"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
)

// planCounter counts, of what engines log, how members and observers catch up.
type planCounter struct{ b *bubble }

func (planCounter) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (c planCounter) WithAttrs([]slog.Attr) slog.Handler             { return c }
func (c planCounter) WithGroup(string) slog.Handler                  { return c }

// Handle implements slog.Handler.
func (c planCounter) Handle(_ context.Context, r slog.Record) error {
	what := ""
	switch r.Message {
	case "observer attached": // a source's decision
		attrs := map[string]string{}
		r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
		what = attrs["rule"] + " " + attrs["mode"]
	case "the replica goes on under another history": // by Rebase: its log is cut
		what = "R6 " + catchup.Trunc.String()
	case "the replica went on after the fork: it begins anew":
		what = "R6 " + catchup.Snap.String()
	default:
		return nil
	}
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.b.plans[what]++
	return nil
}
