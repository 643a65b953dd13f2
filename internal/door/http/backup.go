package httpdoor

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// maxRestoreLine bounds the line of JSON that a restore begins with.
const maxRestoreLine = 1 << 20

// backups registers the routes whose bodies are streams of bytes, of any length.
func (m *router) backups(n Node) {
	m.handle(api.RouteBackup(), func(w *answer, r *http.Request) {
		req, err := decode[api.BackupCreate](w, r, api.RouteBackup())
		if err != nil {
			w.fail(err)
			return
		}
		out := &download{w: w}
		err = n.Backup(r.Context(), req.Body, out)
		if !out.begun {
			if err == nil {
				err = errors.New("the backup is empty")
			}
			w.fail(err)
		}
	})
	m.handle(api.RouteRestore(), func(w *answer, r *http.Request) {
		result, err := restore(r.Context(), w, r, n)
		if err != nil {
			w.fail(err)
			return
		}
		w.result(result)
	})
}

// download answers with bytes; the status is sent with the first.
type download struct {
	w     *answer
	begun bool
}

func (d *download) Write(b []byte) (int, error) {
	if !d.begun {
		d.begun, d.w.status = true, http.StatusOK
		d.w.Header().Set("Content-Type", api.MediaBackup)
		d.w.Header().Set("X-Content-Type-Options", "nosniff")
		d.w.WriteHeader(d.w.status)
	}
	d.w.deadline()
	return d.w.Write(b)
}

// restore reads the request line; what follows is the node's to read. A client that sends nothing for bodyTimeout is
// given up.
func restore(ctx context.Context, w *answer, r *http.Request, n Node) (api.Restored, error) {
	const op = "restore"
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); ct != api.MediaBackup {
		return api.Restored{}, usage(op, "request", "the body must be "+api.MediaBackup, "set the Content-Type header")
	}
	in := bufio.NewReaderSize(&upload{r: r, w: w}, maxRestoreLine)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return api.Restored{}, usage(op, "request", "it does not begin with a line of JSON", "")
	}
	var req api.Restore
	dec := json.NewDecoder(strings.NewReader(string(line)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return api.Restored{}, usage(op, "request", strings.TrimPrefix(err.Error(), "json: "), "")
	}
	if err := errors.Join(required(op, "group", req.Group), required(op, "as", req.As)); err != nil {
		return api.Restored{}, err
	}
	raw := make(map[string]string, len(req.Paths))
	for node, dir := range req.Paths {
		if raw[node], err = bindingPath(op, node, dir); err != nil {
			return api.Restored{}, err
		}
	}
	req.Paths = raw
	return n.Restore(ctx, req, in)
}

// upload is a request's body, with the deadline moved on by every read, and lifted at its end: net/http goes on reading,
// to see whether the client is gone, and takes a deadline that passes for that.
type upload struct {
	r *http.Request
	w *answer
}

func (u *upload) Read(b []byte) (int, error) {
	if err := u.deadline(time.Now().Add(bodyTimeout)); err != nil {
		return 0, err
	}
	n, err := u.r.Body.Read(b)
	if errors.Is(err, io.EOF) {
		err = cmp.Or(u.deadline(time.Time{}), err)
	}
	return n, err
}

func (u *upload) deadline(at time.Time) error {
	if err := u.w.rc.SetReadDeadline(at); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
