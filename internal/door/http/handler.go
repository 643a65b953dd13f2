package httpdoor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockstep-sync/lockstep/api"
)

// request is one decoded request.
type request[B any] struct {
	*http.Request
	Body  B
	Query url.Values
}

// newHandler builds the whole API.
func newHandler(cfg Config) (http.Handler, error) {
	seen, err := newObserved(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	m := &router{mux: mux, seen: seen}
	m.routes(cfg.Node)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]bool{"live": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { readyz(w, r, cfg.Node) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/", m.unknown)

	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, &api.Error{Code: api.CodeDenied, Op: "request", Why: "sent by a web page of another origin"})
	}))
	return localHost(cross.Handler(mux)), nil
}

// localHost refuses requests over TCP that were meant for a name other than this machine's own: a web page may
// let its own name resolve to 127.0.0.1 and so have a browser speak to the API.
func localHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, tcp := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); tcp {
			host, _, err := net.SplitHostPort(r.Host)
			if err != nil {
				host = r.Host
			}
			if !loopbackHost(strings.Trim(host, "[]")) {
				writeError(w, &api.Error{Code: api.CodeDenied, Op: "request", Subject: strconv.Quote(r.Host),
					Why: "not a name of this machine's loopback", Hint: "ask for 127.0.0.1 or localhost"})
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// router registers routes and wraps them in what is common to all.
type router struct {
	mux  *http.ServeMux
	seen *observed
}

// plain registers an operation that is answered at once.
func plain[B any](m *router, route api.Route, do func(ctx context.Context, r request[B]) (any, error)) {
	m.handle(route, func(w *answer, r *http.Request) {
		req, err := decode[B](w, r, route)
		if err != nil {
			w.fail(err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), plainTimeout)
		defer cancel()
		result, err := do(ctx, req)
		if err != nil {
			w.fail(err)
			return
		}
		w.result(result)
	})
}

// long registers an operation that may take long and reports progress if the client asks for a stream.
func long[B any](m *router, route api.Route, do func(ctx context.Context, r request[B], progress func(api.Progress)) (any, error)) {
	m.handle(route, func(w *answer, r *http.Request) {
		req, err := decode[B](w, r, route)
		if err != nil {
			w.fail(err)
			return
		}
		if !strings.Contains(r.Header.Get("Accept"), api.MediaStream) {
			result, err := do(r.Context(), req, func(api.Progress) {})
			if err != nil {
				w.fail(err)
				return
			}
			w.result(result)
			return
		}
		s := startStream(w)
		defer s.close()
		result, err := do(r.Context(), req, s.progress)
		s.end(result, err)
	})
}

func (m *router) handle(route api.Route, serve func(w *answer, r *http.Request)) {
	m.mux.HandleFunc(route.Pattern(), func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		a := &answer{ResponseWriter: w, rc: http.NewResponseController(w)}
		serve(a, r)
		m.seen.record(route.Pattern(), strconv.Itoa(a.status), time.Since(start))
	})
}

// unknown answers what no route matches, and says which method would have been right.
func (m *router) unknown(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := m.mux.Handler(other); pattern != "/" && pattern != "" {
			allowed = append(allowed, method)
		}
	}
	e := &api.Error{Code: api.CodeNotFound, Op: "request", Subject: api.EscapePath(r.Method + " " + r.URL.Path),
		Why: "no such route", Hint: "see the list of routes in the documentation of the API"}
	if len(allowed) > 0 {
		e.Code, e.Why, e.Hint = api.CodeUsage, "this route does not take "+r.Method, "use "+strings.Join(allowed, " or ")
		w.Header().Set("Allow", strings.Join(allowed, ", "))
	}
	writeError(w, e)
}

func readyz(w http.ResponseWriter, r *http.Request, node Node) {
	ctx, cancel := context.WithTimeout(r.Context(), plainTimeout)
	defer cancel()
	out := api.Ready{Ready: true, Checks: node.Ready(ctx)}
	status := http.StatusOK
	if slices.ContainsFunc(out.Checks, func(c api.Check) bool { return !c.OK }) {
		out.Ready, status = false, http.StatusServiceUnavailable
	}
	writeJSON(w, status, out)
}

// decode reads the request whole and refuses what it does not know.
func decode[B any](w *answer, r *http.Request, route api.Route) (request[B], error) {
	req := request[B]{Request: r}
	bad := func(why, hint string) error {
		return &api.Error{Code: api.CodeUsage, Op: "request", Subject: route.Pattern(), Why: why, Hint: hint}
	}
	var err error
	if req.Query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return req, bad("query: "+err.Error(), "")
	}
	known := queryOf(route)
	for key, values := range req.Query {
		if !slices.Contains(known, key) {
			return req, bad(fmt.Sprintf("unknown query parameter %q", key), "known here: "+orNone(known))
		}
		if len(values) > 1 {
			return req, bad(fmt.Sprintf("query parameter %q given twice", key), "")
		}
	}
	js, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxRequest))
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return req, bad(fmt.Sprintf("body larger than %d bytes", api.MaxRequest), "")
	}
	if err != nil {
		return req, bad("reading the body: "+err.Error(), "")
	}
	// The read timeout was for the request; it must not end a long operation.
	if err := w.rc.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return req, fmt.Errorf("clear read deadline: %w", err)
	}
	if _, none := any(req.Body).(api.None); none {
		if len(js) != 0 {
			return req, bad("takes no body", "")
		}
		return req, nil
	}
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); ct != api.MediaJSON {
		return req, bad("the body must be "+api.MediaJSON, "set the Content-Type header")
	}
	dec := json.NewDecoder(strings.NewReader(string(js)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req.Body); err != nil {
		return req, bad("body: "+strings.TrimPrefix(err.Error(), "json: "), "")
	}
	if dec.More() {
		return req, bad("body: something follows the JSON value", "")
	}
	return req, nil
}

func queryOf(route api.Route) []string {
	if _, ok := route.Request.(api.DirList); ok {
		return []string{"after", "limit", "path"}
	}
	return nil
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
