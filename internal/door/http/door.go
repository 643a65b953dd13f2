package httpdoor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config of a Door. Node, Metrics and Log are required.
type Config struct {
	Node    Node
	Metrics *prometheus.Registry // served at /metrics; the door adds its own
	Log     *slog.Logger
	Socket  string // path of the unix socket; empty: none
	API     string // loopback HOST:PORT; empty: none
}

// Door is an open API.
type Door struct {
	cfg       Config
	listeners []net.Listener
	socket    fs.FileInfo // identity of our socket; nil: none
	http      *http.Server
	cancel    context.CancelFunc // ends every request's context
	serving   sync.WaitGroup

	mu   sync.Mutex
	errs []error // of listeners that broke
}

// Open listens and serves until Close. Errors are *api.Error: an address in use, a live socket, a host that
// is not loopback.
func Open(ctx context.Context, cfg Config) (*Door, error) {
	d := &Door{cfg: cfg}
	handler, err := newHandler(cfg)
	if err != nil {
		return nil, err
	}
	if err := d.listen(ctx); err != nil {
		return nil, errors.Join(err, d.closeListeners())
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	d.http = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	for _, l := range d.listeners {
		d.serving.Go(func() { d.serve(l) })
	}
	return d, nil
}

func (d *Door) listen(ctx context.Context) error {
	if d.cfg.Socket != "" {
		l, err := listenUnix(ctx, d.cfg.Socket)
		if err != nil {
			return err
		}
		d.listeners = append(d.listeners, l)
		if d.socket, err = os.Lstat(d.cfg.Socket); err != nil {
			return listenError(d.cfg.Socket, err)
		}
	}
	if d.cfg.API != "" {
		l, err := listenLoopback(ctx, d.cfg.API)
		if err != nil {
			return err
		}
		d.listeners = append(d.listeners, l)
	}
	return nil
}

func (d *Door) serve(l net.Listener) {
	if err := d.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		d.mu.Lock()
		d.errs = append(d.errs, fmt.Errorf("serve API on %s: %w", l.Addr(), err))
		d.mu.Unlock()
	}
}

// Addr is the TCP address that is listened on, nil if none.
func (d *Door) Addr() net.Addr {
	for _, l := range d.listeners {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			return a
		}
	}
	return nil
}

// Close stops listening, ends running requests (they see their context cancelled and have until ctx ends to
// answer), waits for them and removes the socket.
func (d *Door) Close(ctx context.Context) error {
	d.cancel()
	err := d.http.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("close API: %w", errors.Join(err, d.http.Close()))
	}
	d.serving.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(append(d.errs, err, d.removeSocket())...)
}

func (d *Door) closeListeners() error {
	var errs []error
	for _, l := range d.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, d.removeSocket())...)
}

// removeSocket removes the socket unless it is another process' by now.
func (d *Door) removeSocket() error {
	if d.socket == nil {
		return nil
	}
	now, err := os.Lstat(d.cfg.Socket)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, d.socket) {
		return nil
	}
	if err == nil {
		err = os.Remove(d.cfg.Socket)
	}
	if err != nil {
		return fmt.Errorf("remove socket %s: %w", d.cfg.Socket, err)
	}
	return nil
}

// observed are the door's own metrics.
type observed struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newObserved(reg prometheus.Registerer) (*observed, error) {
	o := &observed{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_http_requests_total", Help: "API requests answered, by route and HTTP status.",
		}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lockstep_http_request_duration_seconds", Help: "Time from an API request's header to the end of its answer, by route.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}, []string{"route"}),
	}
	if err := errors.Join(reg.Register(o.requests), reg.Register(o.seconds)); err != nil {
		return nil, fmt.Errorf("register API metrics: %w", err)
	}
	return o, nil
}

func (o *observed) record(route, status string, took time.Duration) {
	o.requests.WithLabelValues(route, status).Inc()
	o.seconds.WithLabelValues(route).Observe(took.Seconds())
}
