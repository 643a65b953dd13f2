package httpdoor

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// answer writes one response and remembers its status.
type answer struct {
	http.ResponseWriter
	rc     *http.ResponseController
	status int
}

// result and fail write the whole answer. A client that is gone is nobody's error.
func (a *answer) result(v any) {
	a.status = http.StatusOK
	a.deadline()
	writeJSON(a.ResponseWriter, a.status, withLists(v))
}

func (a *answer) fail(err error) {
	e := asError(err)
	a.status = e.Code.Info().Status
	a.deadline()
	writeError(a.ResponseWriter, e)
}

// deadline bounds the next write. Not every connection can do that; then the client's patience is the bound.
func (a *answer) deadline() { _ = a.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) }

func writeError(w http.ResponseWriter, e *api.Error) { writeJSON(w, e.Code.Info().Status, e) }

// writeJSON answers with v. The error of the write is dropped: there is nobody left to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	js, err := json.Marshal(v)
	if err != nil { // a type of package api that cannot be encoded
		status = http.StatusInternalServerError
		js = []byte(`{"code":"failed","op":"encode answer","why":"internal error"}`)
	}
	w.Header().Set("Content-Type", api.MediaJSON)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(js, '\n'))
}

// withLists returns v with every nil slice replaced by an empty one: a list without elements is [] in JSON.
func withLists(v any) any {
	out := reflect.New(reflect.TypeOf(v)).Elem()
	out.Set(reflect.ValueOf(v))
	fillLists(out)
	return out.Interface()
}

func fillLists(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice:
		own := reflect.MakeSlice(v.Type(), v.Len(), v.Len()) // the node may still use its own
		reflect.Copy(own, v)
		v.Set(own)
		if v.Type().Elem().Kind() == reflect.Struct {
			for i := range v.Len() {
				fillLists(v.Index(i))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fillLists(f)
			}
		}
	}
}

// asError finds the api.Error in err, or makes one.
func asError(err error) *api.Error {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &api.Error{Code: api.CodeUnavailable, Why: "timed out: " + err.Error(), Hint: "try again"}
	case errors.Is(err, context.Canceled):
		return &api.Error{Code: api.CodeInterrupted, Why: "the request was cancelled, or the node is stopping"}
	}
	return &api.Error{Code: api.CodeFailed, Why: err.Error()}
}

// stream writes api.StreamLines. progress may be called from any goroutine, but not after end.
type stream struct {
	w  *answer
	mu sync.Mutex
	// gone: a write failed. The operation is told by its context, which net/http cancels.
	gone bool
}

func startStream(w *answer) *stream {
	w.status = http.StatusOK
	w.Header().Set("Content-Type", api.MediaStream)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(w.status)
	return &stream{w: w}
}

func (s *stream) progress(p api.Progress) { s.line(api.StreamLine{Progress: &p}) }

func (s *stream) end(result any, err error) {
	if err == nil {
		var js []byte
		if js, err = json.Marshal(withLists(result)); err == nil {
			s.line(api.StreamLine{Result: js})
			return
		}
	}
	s.line(api.StreamLine{Error: asError(err)})
}

// close makes later lines vanish: the response writer must not be touched after the handler has returned.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
}

func (s *stream) line(l api.StreamLine) {
	js, err := json.Marshal(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || err != nil {
		return
	}
	s.w.deadline()
	if _, err = s.w.Write(append(js, '\n')); err == nil {
		err = s.w.rc.Flush()
	}
	s.gone = err != nil
}
