package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// source is one way of watching. Its Read keeps the promises of Watcher.Read.
type source interface {
	Read(ctx context.Context) ([]Event, error)
	// cookie makes Read deliver Barrier(id), which is open in barriers, after everything that happened before.
	cookie(id uint64) error
	Overflows() uint64
	Close() error
}

// ladder is the Watcher that Open returns: the best source that works, and polling if inotify runs out of watches.
type ladder struct {
	cfg      Config
	barriers barriers

	mu     sync.Mutex
	closed bool
	mode   Mode
	why    []string
	source source
	before uint64 // overflows of sources that were given up
}

// Open starts to watch. What happened before it returns may or may not be hinted at. Of the modes that Config allows
// it takes the first that works; it fails if none does.
func Open(cfg Config) (Watcher, error) {
	l := &ladder{cfg: cfg, barriers: barriers{open: map[uint64]struct{}{}}}
	if err := l.defaults(); err != nil {
		return nil, fmt.Errorf("watch %s: %w", cfg.Root, err)
	}
	steps := []struct {
		mode Mode
		open func(*Config, *barriers) (source, error)
	}{{Fanotify, openFanotify}, {Inotify, openInotify}, {Poll, openPoll}}
	var errs []error
	for _, step := range steps {
		if cfg.Force != "" && cfg.Force != step.mode {
			continue
		}
		src, err := step.open(&l.cfg, &l.barriers)
		if err == nil {
			l.mode, l.source = step.mode, src
			return l, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", step.mode, err))
		l.why = append(l.why, errs[len(errs)-1].Error())
	}
	if errs == nil {
		return nil, fmt.Errorf("watch %s: no mode %q: %w", cfg.Root, cfg.Force, unix.EINVAL)
	}
	return nil, fmt.Errorf("watch %s: %w", cfg.Root, errors.Join(errs...))
}

func (l *ladder) defaults() error {
	c := &l.cfg
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Tick == nil {
		c.Tick = func(every time.Duration) (<-chan time.Time, func()) {
			t := time.NewTicker(every)
			return t.C, t.Stop
		}
	}
	if c.PollEvery <= 0 {
		c.PollEvery = DefaultPollEvery
	}
	if c.rootCheckEvery <= 0 {
		c.rootCheckEvery = rootCheckEvery
	}
	if c.addWatch == nil {
		c.addWatch = unix.InotifyAddWatch
	}
	work, inside, err := workBeneath(c.Root, c.Work)
	if err != nil {
		return err
	}
	ask := c.Ignore
	switch {
	case ask == nil && !inside:
		c.Ignore = func(string) bool { return false }
	case ask == nil:
		c.Ignore = func(rel string) bool { return rel == work || strings.HasPrefix(rel, work) && rel[len(work)] == '/' }
	case inside:
		c.Ignore = func(rel string) bool {
			return strings.HasPrefix(rel, work) && (len(rel) == len(work) || rel[len(work)] == '/') || ask(rel)
		}
	}
	return nil
}

// workBeneath says whether the work directory lies beneath the root, and where.
func workBeneath(root, work string) (rel string, inside bool, err error) {
	for _, p := range []*string{&root, &work} {
		if *p, err = filepath.Abs(*p); err != nil {
			return "", false, err
		}
		if *p, err = filepath.EvalSymlinks(*p); err != nil {
			return "", false, err
		}
	}
	rel, inside = beneath(root, work)
	if inside && rel == "" {
		return "", false, fmt.Errorf("the work directory %s is the root itself: %w", work, unix.EINVAL)
	}
	return rel, inside, nil
}

func (l *ladder) Mode() (mode, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.mode), strings.Join(l.why, "; ")
}

func (l *ladder) Read(ctx context.Context) ([]Event, error) {
	l.mu.Lock()
	src := l.source
	l.mu.Unlock()
	events, err := src.Read(ctx)
	if errors.Is(err, errWatches) {
		return l.fall(err)
	}
	return events, err
}

// fall replaces inotify by polling. Both were blind for a moment, so everything has to be compared.
func (l *ladder) fall(cause error) ([]Event, error) {
	if l.cfg.Force != "" {
		return nil, cause
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("watch %s: %w", l.cfg.Root, os.ErrClosed)
	}
	src, err := openPoll(&l.cfg, &l.barriers)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", l.cfg.Root, errors.Join(cause, err))
	}
	l.cfg.Log.Warn("inotify is given up for polling", "root", l.cfg.Root, "error", cause)
	l.before += l.source.Overflows() + 1
	if err := l.source.Close(); err != nil {
		l.cfg.Log.Warn("close inotify", "root", l.cfg.Root, "error", err)
	}
	l.source, l.mode = src, Poll
	l.why = append(l.why, fmt.Sprintf("%s: %v", Inotify, cause))
	for _, id := range l.barriers.waiting() {
		if err := src.cookie(id); err != nil {
			return nil, fmt.Errorf("watch %s: %w", l.cfg.Root, err)
		}
	}
	return []Event{{Kind: Rescan}}, nil
}

func (l *ladder) Barrier() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, fmt.Errorf("barrier: %w", os.ErrClosed)
	}
	id := l.barriers.next()
	if err := l.source.cookie(id); err != nil {
		l.barriers.done(id)
		return 0, fmt.Errorf("barrier: %w", err)
	}
	return id, nil
}

func (l *ladder) Overflows() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.before + l.source.Overflows()
}

func (l *ladder) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.source.Close()
}
