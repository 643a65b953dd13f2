package httpdoor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

func open(t *testing.T, node Node) (*Door, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), SocketName)
	d, err := Open(t.Context(), Config{Node: node, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
		Socket: socket, API: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return d, socket
}

func dial(t *testing.T, server string) *client.Client {
	t.Helper()
	c, err := client.New(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func wantCode(t *testing.T, err error, code api.Code, words string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error()+" "+e.Hint, words) {
		t.Errorf("got %v (%+v), want code %s and %q", err, e, code, words)
	}
}

// TestEveryRoute asks each route through the client, over both listeners, and checks what reached the node.
func TestEveryRoute(t *testing.T) {
	node := &fakeNode{}
	d, socket := open(t, node)
	type ask struct {
		name string
		do   func(ctx context.Context, c *client.Client) (any, error)
		want []any
	}
	g := "web/é %2f"
	asks := []ask{
		{"version", func(ctx context.Context, c *client.Client) (any, error) { return c.Version(ctx) }, []any{"version"}},
		{"status", func(ctx context.Context, c *client.Client) (any, error) { return c.Status(ctx) }, []any{"status"}},
		{"nodes", func(ctx context.Context, c *client.Client) (any, error) { return c.Nodes(ctx) }, []any{"nodes"}},
		{"level", func(ctx context.Context, c *client.Client) (any, error) { return c.Level(ctx) }, []any{"level"}},
		{"level raise", func(ctx context.Context, c *client.Client) (any, error) {
			return c.LevelRaise(ctx, api.LevelRaise{To: 2})
		}, []any{"level raise", api.LevelRaise{To: 2}}},
		{"tokens", func(ctx context.Context, c *client.Client) (any, error) { return c.Tokens(ctx) }, []any{"tokens"}},
		{"token create", func(ctx context.Context, c *client.Client) (any, error) {
			return c.TokenCreate(ctx, api.TokenCreate{TTL: "30m"})
		}, []any{"token create", 30 * time.Minute}},
		{"token default", func(ctx context.Context, c *client.Client) (any, error) {
			return c.TokenCreate(ctx, api.TokenCreate{})
		}, []any{"token create", DefaultTTL}},
		{"revoke", func(ctx context.Context, c *client.Client) (any, error) { return c.TokenRevoke(ctx, "i/1") }, []any{"revoke", "i/1"}},
		{"groups", func(ctx context.Context, c *client.Client) (any, error) { return c.Groups(ctx) }, []any{"groups"}},
		{"group", func(ctx context.Context, c *client.Client) (any, error) { return c.Group(ctx, g) }, []any{"group", g}},
		{"transfer", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupTransfer(ctx, g, api.GroupTransfer{Node: "n2"})
		}, []any{"transfer", g, "n2"}},
		{"member", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupMember(ctx, g, api.GroupMember{Op: "add", Node: "n4", Role: "spare"})
		}, []any{"member", g, api.GroupMember{Op: "add", Node: "n4", Role: "spare"}}},
		{"delete", func(ctx context.Context, c *client.Client) (any, error) { return c.GroupDelete(ctx, g) }, []any{"delete", g}},
		{"drain", func(ctx context.Context, c *client.Client) (any, error) {
			return c.NodeDrain(ctx, "n1", api.NodeDrain{Off: true}, nil)
		}, []any{"drain", "n1", true}},
		{"remove", func(ctx context.Context, c *client.Client) (any, error) {
			return c.NodeRemove(ctx, "n1", api.NodeRemove{Force: true}, nil)
		}, []any{"remove", "n1", true}},
		{"cluster set", func(ctx context.Context, c *client.Client) (any, error) {
			return c.ClusterSet(ctx, api.ClusterSet{RepairAfter: "10m"})
		}, []any{"cluster set", api.ClusterSet{RepairAfter: "10m"}}},
		{"group set", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupSet(ctx, g, api.GroupSet{Topology: "tree:4"})
		}, []any{"group set", g, api.GroupSet{Topology: "tree:4"}}},
		{"probe", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupProbe(ctx, g, api.GroupProbeRequest{Ack: "all"})
		}, []any{"probe", g, api.GroupProbeRequest{Ack: "all"}}},
		{"check", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupCheck(ctx, g, api.GroupCheckRequest{Deep: true})
		}, []any{"check", g, true}},
		{"token", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupToken(ctx, g, "00.1.2.3")
		}, []any{"token", g, "00.1.2.3"}},
		{"recover", func(ctx context.Context, c *client.Client) (any, error) {
			return c.GroupRecover(ctx, g, api.GroupRecover{Confirm: "web", DryRun: true})
		}, []any{"group recover", g, api.GroupRecover{Confirm: "web", DryRun: true}}},
		{"backup", func(ctx context.Context, c *client.Client) (any, error) {
			body, err := c.Backup(ctx, api.BackupCreate{Groups: []string{"web"}})
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(body)
			if string(b) != "the backup" {
				err = fmt.Errorf("got %q, %v", b, err)
			}
			return string(b), errors.Join(err, body.Close())
		}, []any{"backup", api.BackupCreate{Groups: []string{"web"}}}},
		{"restore", func(ctx context.Context, c *client.Client) (any, error) {
			return c.Restore(ctx, api.Restore{Group: "web", As: "copy", Paths: map[string]string{"n1": `/a\xff`}}, strings.NewReader("line 1\nline 2"))
		}, []any{"restore", api.Restore{Group: "web", As: "copy", Paths: map[string]string{"n1": "/a\xff"}}, "line 1\nline 2"}},
		{"create", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DirCreate(ctx, api.DirCreate{Name: "web", Paths: map[string]string{"n1": `/a\xff`}})
		}, []any{"create", api.DirCreate{Name: "web", Paths: map[string]string{"n1": "/a\xff"}}}},
		{"bind", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DirBind(ctx, g, api.DirBind{Node: "n2", Path: `/b\\c`})
		}, []any{"bind", g, "n2", `/b\c`}},
		{"unbind", func(ctx context.Context, c *client.Client) (any, error) { return c.DirUnbind(ctx, g, "n2") }, []any{"unbind", g, "n2"}},
		{"confirm", func(ctx context.Context, c *client.Client) (any, error) { return c.DirConfirm(ctx, g, "n2") }, []any{"confirm", g, "n2"}},
		{"dir", func(ctx context.Context, c *client.Client) (any, error) { return c.DirStatus(ctx, g) }, []any{"dir", g}},
		{"ls", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DirList(ctx, g, api.DirList{Path: `a\xff&=`, After: "b", Limit: 7})
		}, []any{"ls", g, api.DirList{Path: "a\xff&=", After: "b", Limit: 7}}},
		{"ls default", func(ctx context.Context, c *client.Client) (any, error) { return c.DirList(ctx, g, api.DirList{}) },
			[]any{"ls", g, api.DirList{Limit: api.DirListMax}}},
		{"conflicts", func(ctx context.Context, c *client.Client) (any, error) { return c.DirConflicts(ctx, g) }, []any{"conflicts", g}},
		{"wait", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DirWait(ctx, g, api.DirWaitFor{Timeout: "3s"}, nil)
		}, []any{"wait", g, api.DirWaitFor{Mode: api.WaitAll, Timeout: "3s"}, true}},
		{"wait node", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DirWait(ctx, g, api.DirWaitFor{Mode: api.WaitNode, Node: "n3"}, nil)
		}, []any{"wait", g, api.DirWaitFor{Mode: api.WaitNode, Node: "n3"}, false}},
		{"verify", func(ctx context.Context, c *client.Client) (any, error) {
			return c.DirVerify(ctx, g, api.DirVerifyRequest{Repair: true}, nil)
		}, []any{"verify", g, true}},
	}
	for _, server := range []string{"unix://" + socket, d.Addr().String()} {
		c := dial(t, server)
		for _, a := range asks {
			got, err := a.do(t.Context(), c)
			if err != nil {
				t.Errorf("%s: %v", a.name, err)
			}
			if !reflect.DeepEqual(node.last(), a.want) {
				t.Errorf("%s: the node was asked %v, want %v", a.name, node.last(), a.want)
			}
			if js, err := json.Marshal(got); err != nil || strings.Contains(string(js), "null") {
				t.Errorf("%s: answer %s, %v", a.name, js, err)
			}
		}
	}
}

func TestErrorsCrossTheDoor(t *testing.T) {
	node := &fakeNode{}
	_, socket := open(t, node)
	c := dial(t, "unix://"+socket)
	for _, row := range api.Codes() {
		want := &api.Error{Code: row.Code, Op: "o", Subject: "s", Why: "w", Hint: "h"}
		node.err = fmt.Errorf("wrapped: %w", want)
		_, err := c.Nodes(t.Context())
		if e := (*api.Error)(nil); !errors.As(err, &e) || *e != *want {
			t.Errorf("%s came back as %v", row.Code, err)
		}
		_, err = c.DirVerify(t.Context(), "g", api.DirVerifyRequest{}, nil)
		if e := (*api.Error)(nil); !errors.As(err, &e) || *e != *want {
			t.Errorf("%s came back from a stream as %v", row.Code, err)
		}
	}
	node.err = errors.New("plain")
	_, err := c.Nodes(t.Context())
	wantCode(t, err, api.CodeFailed, "plain")
}

func TestBadRequests(t *testing.T) {
	node := &fakeNode{}
	d, _ := open(t, node)
	for _, tc := range []struct {
		method, path, body string
		status             int
		words              string
	}{
		{"GET", "/v1/nope", "", 404, "no such route"},
		{"GET", "/", "", 404, "no such route"},
		{"GET", "/v1/dirs/web/nodes/n1/confirm", "", 400, "use POST"},
		{"DELETE", "/v1/nodes", "", 400, "use GET"},
		{"GET", "/v1/nodes?verbose=1", "", 400, "verbose"},
		{"GET", "/v1/nodes", "{}", 400, "takes no body"},
		{"GET", "/v1/dirs/web/entries?limit=0", "", 400, "between 1 and"},
		{"GET", "/v1/dirs/web/entries?limit=1&limit=2", "", 400, "twice"},
		{"GET", `/v1/dirs/web/entries?path=%5Cq`, "", 400, "backslash"},
		{"POST", "/v1/tokens", `{"ttl":"1h","tll":"2h"}`, 400, "tll"},
		{"POST", "/v1/tokens", `{"ttl":`, 400, "body"},
		{"POST", "/v1/tokens", `{"ttl":"1h"} {}`, 400, "follows"},
		{"POST", "/v1/tokens", `{"ttl":"1y"}`, 400, "not a duration"},
		{"POST", "/v1/tokens", `{"ttl":"-1s"}`, 400, "out of range"},
		{"POST", "/v1/tokens", `{"ttl":"10000h"}`, 400, "out of range"},
		{"POST", "/v1/tokens", `{"ttl":"` + strings.Repeat("1", api.MaxRequest) + `"}`, 400, "larger than"},
		{"POST", "/v1/dirs", `{"name":"web"}`, 400, "no node"},
		{"POST", "/v1/dirs", `{"paths":{"n1":"/a"}}`, 400, "name"},
		{"POST", "/v1/dirs", `{"name":"web","paths":{"n1":"a"}}`, 400, "absolute"},
		{"POST", "/v1/dirs/web/nodes", `{"path":"/a"}`, 400, "node"},
		{"POST", "/v1/dirs/web/wait", `{"mode":"most"}`, 400, "most"},
		{"POST", "/v1/dirs/web/wait", `{"mode":"node"}`, 400, "mode node needs it"},
		{"POST", "/v1/dirs/web/wait", `{"timeout":"soon"}`, 400, "soon"},
		{"POST", "/v1/groups/web/transfer", `{}`, 400, "node"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://"+d.Addr().String()+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", api.MediaJSON)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		var e api.Error
		if jerr := json.Unmarshal(body, &e); err != nil || jerr != nil || resp.StatusCode != tc.status ||
			!strings.Contains(e.Error()+e.Hint, tc.words) || e.Code.Info().Status != tc.status {
			t.Errorf("%s %s: %d %s, want %d %q", tc.method, tc.path, resp.StatusCode, body, tc.status, tc.words)
		}
	}
	if asked := node.last(); asked != nil {
		t.Errorf("a bad request reached the node: %v", asked)
	}
}

func TestBrowsersAreRefused(t *testing.T) {
	d, _ := open(t, &fakeNode{})
	for _, tc := range []struct {
		name   string
		change func(*http.Request)
		want   int
	}{
		{"plain", func(*http.Request) {}, 200},
		{"localhost", func(r *http.Request) { r.Host = "localhost:7421" }, 200},
		{"v6", func(r *http.Request) { r.Host = "[::1]:7421" }, 200},
		{"other name", func(r *http.Request) { r.Host = "evil.example:7421" }, 403},
		{"other origin", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }, 403},
		{"cross site", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		{"form", func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+d.Addr().String()+"/v1/tokens", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", api.MediaJSON)
		tc.change(req)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, resp.StatusCode, tc.want)
		}
	}
}

func TestStream(t *testing.T) {
	node := &fakeNode{block: make(chan struct{})}
	_, socket := open(t, node)
	c := dial(t, "unix://"+socket)
	var seen []api.Progress
	got, err := c.DirVerify(t.Context(), "web", api.DirVerifyRequest{}, func(p api.Progress) {
		seen = append(seen, p) // before the operation has ended: it is blocked until now
		close(node.block)
	})
	if err != nil || got.Group != "web" || len(seen) != 1 || seen[0].Node != "n1" {
		t.Errorf("got %+v, %v after %+v", got, err, seen)
	}

	node.block = make(chan struct{}) // a client that leaves ends the operation
	ctx, cancel := context.WithCancel(t.Context())
	_, err = c.DirVerify(ctx, "web", api.DirVerifyRequest{}, func(api.Progress) { cancel() })
	wantCode(t, err, api.CodeInterrupted, "")
}

// TestCloseEndsStreams: Close does not wait for an operation that would go on for ever.
func TestCloseEndsStreams(t *testing.T) {
	node := &fakeNode{block: make(chan struct{})}
	socket := filepath.Join(t.TempDir(), SocketName)
	d, err := Open(t.Context(), Config{Node: node, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	c := dial(t, "unix://"+socket)
	go func() {
		_, err := c.DirVerify(context.Background(), "web", api.DirVerifyRequest{}, func(api.Progress) { close(started) })
		ended <- err
	}()
	<-started
	if err := d.Close(context.Background()); err != nil {
		t.Error(err)
	}
	wantCode(t, <-ended, api.CodeInterrupted, "stopping")
}

func TestOps(t *testing.T) {
	node := &fakeNode{ready: []api.Check{{Name: "control", OK: true}, {Name: "dir web", Text: "scanning"}}}
	d, _ := open(t, node)
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + d.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(bufio.NewReader(resp.Body))
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := get("/livez"); status != 200 {
		t.Errorf("livez: %d %s", status, body)
	}
	if status, body := get("/readyz"); status != 503 || !strings.Contains(body, "scanning") {
		t.Errorf("readyz: %d %s", status, body)
	}
	node.ready[1].OK = true
	if status, body := get("/readyz"); status != 200 || !strings.Contains(body, `"ready":true`) {
		t.Errorf("readyz: %d %s", status, body)
	}
	get("/v1/nodes")
	if status, body := get("/metrics"); status != 200 ||
		!strings.Contains(body, `lockstep_http_requests_total{route="GET /v1/nodes",status="200"} 1`) {
		t.Errorf("metrics: %d %s", status, body)
	}
}

func TestListen(t *testing.T) {
	cfg := Config{Node: &fakeNode{}, Log: slog.New(slog.DiscardHandler)}
	try := func(socket, address string) error {
		c := cfg
		c.Socket, c.API, c.Metrics = socket, address, prometheus.NewRegistry()
		d, err := Open(t.Context(), c)
		if err == nil {
			err = errors.Join(errors.New("opened"), d.Close(t.Context()))
		}
		return err
	}
	for _, address := range []string{"0.0.0.0:7421", ":7421", "192.0.2.1:7421", "[::]:7421", "example.org:7421"} {
		wantCode(t, try("", address), api.CodeDenied, "loopback")
	}
	for _, address := range []string{"7421", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"} {
		wantCode(t, try("", address), api.CodeUsage, "HOST:PORT")
	}
	d, socket := open(t, &fakeNode{})
	wantCode(t, try("", d.Addr().String()), api.CodeConflict, "another process has this port")
	wantCode(t, try(socket, ""), api.CodeConflict, "another lockstep process")
	if _, err := dial(t, "unix://"+socket).Version(t.Context()); err != nil {
		t.Errorf("the refused door broke the first one: %v", err)
	}

	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantCode(t, try(file, ""), api.CodeConflict, "not a socket")
	wantCode(t, try(filepath.Join(dir, strings.Repeat("x", 100)), ""), api.CodeUsage, "shorter")
	wantCode(t, try(filepath.Join(dir, "missing", "s"), ""), api.CodeFailed, "no such file")
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), SocketName)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), Config{Node: &fakeNode{}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(socket)
	if err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if _, err := dial(t, "unix://"+socket).Version(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(socket), "*")); err != nil || len(left) != 1 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCloseSparesAnothersSocket: a process that stops late must not remove its successor's socket.
func TestCloseSparesAnothersSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), SocketName)
	d, err := Open(t.Context(), Config{Node: &fakeNode{}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	next, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Error("removed another's socket")
	}
}
