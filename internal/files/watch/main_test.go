package watch

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// allModes runs a test once for each mode; fanotify is left out for those who are not root.
func allModes(t *testing.T, test func(t *testing.T, mode Mode)) {
	for _, mode := range []Mode{Fanotify, Inotify, Poll} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == Fanotify && os.Getuid() != 0 {
				t.Skip("fanotify is for root")
			}
			test(t, mode)
		})
	}
}

// rig is a watched directory with a work directory beside it.
type rig struct {
	t   *testing.T
	top string // the root
	w   Watcher
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	base := t.TempDir()
	r := &rig{t: t, top: filepath.Join(base, "root")}
	cfg.Root, cfg.Work = r.top, filepath.Join(base, "work")
	for _, dir := range []string{cfg.Root, cfg.Work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.open(cfg)
	return r
}

// prefilled is a rig whose root held the given directories (ending in '/') and files before it was watched.
func prefilled(t *testing.T, cfg Config, paths ...string) *rig {
	t.Helper()
	base := t.TempDir()
	r := &rig{t: t, top: filepath.Join(base, "root")}
	cfg.Root, cfg.Work = r.top, filepath.Join(base, "work")
	if err := os.Mkdir(cfg.Work, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(cfg.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if strings.HasSuffix(p, "/") {
			r.do(os.MkdirAll(r.path(p), 0o755))
			continue
		}
		r.do(os.MkdirAll(filepath.Dir(r.path(p)), 0o755))
		r.do(os.WriteFile(r.path(p), []byte("before"), 0o644))
		old := time.Now().Add(-time.Hour)
		r.do(os.Chtimes(r.path(p), old, old))
	}
	r.open(cfg)
	return r
}

func (r *rig) open(cfg Config) {
	r.t.Helper()
	cfg.OwnEvents = true
	cfg.PollEvery = time.Hour
	cfg.Log = slog.New(slog.NewTextHandler(r.t.Output(), nil))
	w, err := Open(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := w.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
	})
	r.w = w
}

func (r *rig) path(rel string) string { return filepath.Join(r.top, rel) }

func (r *rig) do(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) write(rel, content string) {
	r.t.Helper()
	r.do(os.WriteFile(r.path(rel), []byte(content), 0o644))
}

// drain returns all events before a barrier that is asked for now.
func (r *rig) drain() []Event {
	r.t.Helper()
	id, err := r.w.Barrier()
	if err != nil {
		r.t.Fatal(err)
	}
	return r.until(id)
}

func (r *rig) until(id uint64) []Event {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	var all []Event
	for {
		batch, err := r.w.Read(ctx)
		if err != nil {
			r.t.Fatalf("read: %v (have %d events)", err, len(all))
		}
		i := slices.IndexFunc(batch, func(ev Event) bool { return ev.Kind == Barrier && ev.ID == id })
		if i >= 0 {
			return append(all, batch[:i]...)
		}
		all = append(all, batch...)
	}
}

// covered says whether some event makes somebody look at path: a hint at it, or a Rescan at or above it.
func covered(events []Event, path string) bool {
	return slices.ContainsFunc(events, func(ev Event) bool {
		switch ev.Kind {
		case Look, Settle:
			return ev.Path == path
		case Rescan:
			return ev.Path == "" || ev.Path == path || strings.HasPrefix(path, ev.Path+"/")
		}
		return false
	})
}

// String helps failures to be read.
func (e Event) String() string {
	names := [...]string{"Look", "Settle", "Rescan", "Barrier", "Gone"}
	return fmt.Sprintf("%s %q", names[e.Kind], e.Path)
}

// strongest merges events to one kind a path, as an agent would.
func strongest(events []Event) map[string]Kind {
	kinds := map[string]Kind{}
	for _, ev := range events {
		if have, ok := kinds[ev.Path]; !ok || strength(ev.Kind) > strength(have) {
			kinds[ev.Path] = ev.Kind
		}
	}
	return kinds
}
