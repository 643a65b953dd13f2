// Package client is the public Go client of a Lockstep node's HTTP API: one method per route, no state but the
// connections it keeps open. It is not a replica: it asks one node, which answers for the cluster.
//
// Every error is an *api.Error, or wraps one. A Client is safe for concurrent use and starts no goroutine but
// those of net/http; Close releases idle connections.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// maxLine bounds one line of a streamed answer, maxAnswer a whole plain one, in bytes.
const (
	maxLine   = 64 << 20
	maxAnswer = 256 << 20
)

// Client talks to one node.
type Client struct {
	server string
	base   string
	http   *http.Client
}

// New returns a client of the node at server: unix:///PATH or HOST:PORT. It does not connect yet.
func New(server string) (*Client, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	base := "http://" + server
	if path, ok := strings.CutPrefix(server, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, badServer(server, "the path of a unix socket must be absolute")
		}
		base = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
	} else {
		if _, port, err := net.SplitHostPort(server); err != nil || !isPort(port) {
			return nil, badServer(server, "not an address")
		}
		transport.DialContext = dialer.DialContext
	}
	return &Client{server: server, base: base, http: &http.Client{Transport: transport}}, nil
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func badServer(server, why string) error {
	return &api.Error{Code: api.CodeUsage, Op: "server address", Subject: strconv.Quote(server), Why: why,
		Hint: "write unix:///PATH or HOST:PORT"}
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Server is the address that New was given.
func (c *Client) Server() string { return c.server }

func (c *Client) Version(ctx context.Context) (api.Version, error) {
	return call[api.Version](ctx, c, api.RouteVersion(), nil)
}

func (c *Client) Status(ctx context.Context) (api.Status, error) {
	return call[api.Status](ctx, c, api.RouteStatus(), nil)
}

// Ready asks whether the node takes part in its cluster and has compared its directories with it. That it does not, or
// has not, is no error.
func (c *Client) Ready(ctx context.Context) (out api.Ready, err error) {
	r := api.Route{Method: http.MethodGet, Path: "/readyz"}
	resp, err := c.exchange(ctx, r, api.MediaJSON, nil, nil)
	switch {
	case err != nil:
		return out, err
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable:
		return out, c.refused(r, resp)
	}
	return out, c.decode(ctx, r, resp, &out)
}

func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	return call[[]api.Node](ctx, c, api.RouteNodes(), nil)
}

// Level is what every node of the cluster understands.
func (c *Client) Level(ctx context.Context) (api.ClusterLevel, error) {
	return call[api.ClusterLevel](ctx, c, api.RouteLevel(), nil)
}

// LevelRaise raises it, for good.
func (c *Client) LevelRaise(ctx context.Context, req api.LevelRaise) (api.LevelRaised, error) {
	return call[api.LevelRaised](ctx, c, api.RouteLevelRaise(), req)
}

func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	return call[[]api.Token](ctx, c, api.RouteTokens(), nil)
}

func (c *Client) TokenCreate(ctx context.Context, req api.TokenCreate) (api.Token, error) {
	return call[api.Token](ctx, c, api.RouteTokenCreate(), req)
}

func (c *Client) TokenRevoke(ctx context.Context, id string) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteTokenRevoke(), nil, id)
}

func (c *Client) Groups(ctx context.Context) ([]api.Group, error) {
	return call[[]api.Group](ctx, c, api.RouteGroups(), nil)
}

func (c *Client) Group(ctx context.Context, group string) (api.Group, error) {
	return call[api.Group](ctx, c, api.RouteGroup(), nil, group)
}

// GroupMember changes one membership; the group's leader carries it out afterwards.
func (c *Client) GroupMember(ctx context.Context, group string, req api.GroupMember) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteGroupMember(), req, group)
}

// GroupDelete ends a group; the files stay.
func (c *Client) GroupDelete(ctx context.Context, group string) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteGroupDelete(), nil, group)
}

// NodeDrain returns when the node has no seat left. progress may be nil; it is called from this goroutine.
func (c *Client) NodeDrain(ctx context.Context, node string, req api.NodeDrain, progress func(api.Progress)) (api.NodeChange, error) {
	return stream[api.NodeChange](ctx, c, api.RouteNodeDrain(), req, progress, node)
}

// NodeRemove drains the node and takes it out of the cluster. progress may be nil; it is called from this goroutine.
func (c *Client) NodeRemove(ctx context.Context, node string, req api.NodeRemove, progress func(api.Progress)) (api.NodeChange, error) {
	return stream[api.NodeChange](ctx, c, api.RouteNodeRemove(), req, progress, node)
}

// ClusterSet changes what holds for all groups that do not say otherwise.
func (c *Client) ClusterSet(ctx context.Context, req api.ClusterSet) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteClusterSet(), req)
}

func (c *Client) GroupSet(ctx context.Context, group string, req api.GroupSet) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteGroupSet(), req, group)
}

func (c *Client) GroupTransfer(ctx context.Context, group string, req api.GroupTransfer) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteGroupTransfer(), req, group)
}

// GroupRecover makes the survivor with the most of a group's log its new beginning.
func (c *Client) GroupRecover(ctx context.Context, group string, req api.GroupRecover) (api.GroupRecovered, error) {
	return call[api.GroupRecovered](ctx, c, api.RouteGroupRecover(), req, group)
}

// GroupProbe writes an entry that changes nothing and tells how it was answered.
func (c *Client) GroupProbe(ctx context.Context, group string, req api.GroupProbeRequest) (api.GroupProbe, error) {
	return call[api.GroupProbe](ctx, c, api.RouteGroupProbe(), req, group)
}

// GroupCheck has a group's replicas compare their states now.
func (c *Client) GroupCheck(ctx context.Context, group string, req api.GroupCheckRequest) (api.GroupCheck, error) {
	return call[api.GroupCheck](ctx, c, api.RouteGroupCheck(), req, group)
}

// GroupToken tells what became of a write that was answered ACCEPTED.
func (c *Client) GroupToken(ctx context.Context, group, token string) (api.GroupToken, error) {
	return call[api.GroupToken](ctx, c, api.RouteGroupToken(), nil, group, token)
}

// Backup returns a backup as it is made; the caller verifies and closes it.
func (c *Client) Backup(ctx context.Context, req api.BackupCreate) (io.ReadCloser, error) {
	resp, err := c.send(ctx, api.RouteBackup(), api.MediaBackup, req, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Restore makes a group out of what a backup holds of one, which body yields; nil for a dry run.
func (c *Client) Restore(ctx context.Context, req api.Restore, body io.Reader) (api.Restored, error) {
	var out api.Restored
	r := api.RouteRestore()
	line, err := json.Marshal(req)
	if err != nil {
		return out, fmt.Errorf("encode request for %s: %w", r.Pattern(), err)
	}
	if body == nil {
		body = bytes.NewReader(nil)
	}
	all := io.MultiReader(bytes.NewReader(append(line, '\n')), body)
	hr, err := http.NewRequestWithContext(ctx, r.Method, c.base+r.URL(), all)
	if err != nil {
		return out, badServer(c.server, err.Error())
	}
	hr.Header.Set("Accept", api.MediaJSON)
	hr.Header.Set("Content-Type", api.MediaBackup)
	resp, err := c.http.Do(hr)
	if err != nil {
		return out, c.broken(ctx, r, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out, c.refused(r, resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&out); err != nil {
		return out, c.broken(ctx, r, err)
	}
	return out, nil
}

func (c *Client) DirCreate(ctx context.Context, req api.DirCreate) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteDirCreate(), req)
}

func (c *Client) DirBind(ctx context.Context, group string, req api.DirBind) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteDirBind(), req, group)
}

func (c *Client) DirUnbind(ctx context.Context, group, node string) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteDirUnbind(), nil, group, node)
}

// DirConfirm lets a binding that a guard has stopped go on: what it held back is meant.
func (c *Client) DirConfirm(ctx context.Context, group, node string) (api.Done, error) {
	return call[api.Done](ctx, c, api.RouteDirConfirm(), nil, group, node)
}

func (c *Client) DirStatus(ctx context.Context, group string) (api.DirStatus, error) {
	return call[api.DirStatus](ctx, c, api.RouteDirStatus(), nil, group)
}

func (c *Client) DirList(ctx context.Context, group string, req api.DirList) (api.DirEntries, error) {
	q := url.Values{}
	if req.Path != "" {
		q.Set("path", req.Path)
	}
	if req.After != "" {
		q.Set("after", req.After)
	}
	if req.Limit != 0 {
		q.Set("limit", strconv.Itoa(req.Limit))
	}
	return call[api.DirEntries](ctx, c, api.RouteDirList(), q, group)
}

func (c *Client) DirConflicts(ctx context.Context, group string) ([]api.Conflict, error) {
	return call[[]api.Conflict](ctx, c, api.RouteDirConflicts(), nil, group)
}

// DirWait returns when the position is reached or the request's timeout has passed (Done tells which).
// progress may be nil; it is called from this goroutine.
func (c *Client) DirWait(ctx context.Context, group string, req api.DirWaitFor, progress func(api.Progress)) (api.DirWait, error) {
	return stream[api.DirWait](ctx, c, api.RouteDirWait(), req, progress, group)
}

// DirVerify reads everything on every node. progress may be nil; it is called from this goroutine.
func (c *Client) DirVerify(ctx context.Context, group string, req api.DirVerifyRequest, progress func(api.Progress)) (api.DirVerify, error) {
	return stream[api.DirVerify](ctx, c, api.RouteDirVerify(), req, progress, group)
}

func call[T any](ctx context.Context, c *Client, r api.Route, body any, values ...string) (T, error) {
	var out T
	resp, err := c.send(ctx, r, api.MediaJSON, body, values)
	if err != nil {
		return out, err
	}
	return out, c.decode(ctx, r, resp, &out)
}

// decode reads an answer's body into out and closes it.
func (c *Client) decode(ctx context.Context, r api.Route, resp *http.Response, out any) error {
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return c.broken(ctx, r, err)
	}
	return nil
}

func stream[T any](ctx context.Context, c *Client, r api.Route, body any, progress func(api.Progress), values ...string) (T, error) {
	var out T
	resp, err := c.send(ctx, r, api.MediaStream, body, values)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		var line api.StreamLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return out, c.broken(ctx, r, err)
		}
		switch {
		case line.Error != nil:
			return out, line.Error
		case line.Result != nil:
			if err := json.Unmarshal(line.Result, &out); err != nil {
				return out, c.broken(ctx, r, err)
			}
			return out, nil
		case line.Progress != nil && progress != nil:
			progress(*line.Progress)
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return out, c.broken(ctx, r, err)
}

// send returns a response with status 200, or an error.
func (c *Client) send(ctx context.Context, r api.Route, accept string, body any, values []string) (*http.Response, error) {
	resp, err := c.exchange(ctx, r, accept, body, values)
	if err == nil && resp.StatusCode != http.StatusOK {
		return nil, c.refused(r, resp)
	}
	return resp, err
}

// exchange returns a response with whatever status.
func (c *Client) exchange(ctx context.Context, r api.Route, accept string, body any, values []string) (*http.Response, error) {
	target := c.base + r.URL(values...)
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case url.Values:
		if len(b) > 0 {
			target += "?" + b.Encode()
		}
	default:
		js, err := json.Marshal(b)
		if err != nil {
			return nil, fmt.Errorf("encode request for %s: %w", r.Pattern(), err)
		}
		payload = bytes.NewReader(js)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, target, payload)
	if err != nil {
		return nil, badServer(c.server, err.Error())
	}
	req.Header.Set("Accept", accept)
	if payload != nil {
		req.Header.Set("Content-Type", api.MediaJSON)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, r, err)
	}
	return resp, nil
}

// refused reads the error that the node answered with, and closes the answer.
func (c *Client) refused(r api.Route, resp *http.Response) error {
	defer resp.Body.Close()
	var e api.Error
	js, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && json.Unmarshal(js, &e) == nil && e.Code != "" {
		return &e
	}
	return &api.Error{Code: api.CodeFailed, Op: "ask node", Subject: c.server,
		Why:  fmt.Sprintf("%s was answered with %s and not by Lockstep's words", r.Pattern(), resp.Status),
		Hint: "check that the address is the API of a lockstep node"}
}

// broken describes an exchange that did not come to its end.
func (c *Client) broken(ctx context.Context, r api.Route, err error) error {
	if cause := ctx.Err(); cause != nil {
		code := api.CodeInterrupted
		if errors.Is(cause, context.DeadlineExceeded) {
			code = api.CodeUnavailable
		}
		return &api.Error{Code: code, Op: "ask node", Subject: c.server, Why: cause.Error()}
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	e := &api.Error{Code: api.CodeUnavailable, Op: "ask node", Subject: c.server, Why: err.Error(),
		Hint: "see whether `lockstep serve` runs there; name another node with --server unix:///PATH or --server HOST:PORT"}
	var opErr *net.OpError
	if errors.As(err, &opErr) && opErr.Op == "dial" {
		e.Op, e.Why = "connect to node", opErr.Err.Error()
		switch {
		case errors.Is(err, fs.ErrPermission):
			e.Code, e.Why, e.Hint = api.CodeDenied, "this user may not open the socket", "run the command as the user who runs the node"
		case errors.Is(err, fs.ErrNotExist):
			e.Why = "there is no such socket"
		case errors.Is(err, syscall.ECONNREFUSED):
			e.Why = "nobody listens there"
		}
		return e
	}
	if errors.Is(err, io.EOF) {
		e.Why = "the connection was closed without an answer"
		e.Hint = fmt.Sprintf("check that the address is the API of a lockstep node: its port is %d by default, the one for other nodes does not answer", api.DefaultPort)
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		e.Code, e.Hint = api.CodeFailed, "check that the address is the API of a lockstep node"
		e.Why = "the answer to " + r.Pattern() + " is not JSON: " + err.Error()
	}
	return e
}
