package content

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// rig is a few members with their stores, joined by loopback connections that can be counted and cut.
type rig struct {
	t       testing.TB
	members map[uint64]*member
	stop    context.CancelFunc
	ctx     context.Context
	serving sync.WaitGroup

	cutAfter atomic.Int64 // bytes the dialling side may still write or read on new connections; 0: no limit
	dialled  atomic.Int64
	stall    time.Duration
}

type member struct {
	*Store
	rig  *rig
	dir  string
	tree string // files of the binding
	free atomic.Uint64
	age  atomic.Int64 // how far its clock is ahead, ns

	mu    sync.Mutex
	local map[manifest.Hash]string
}

func newRig(t testing.TB, n int) *rig {
	r := &rig{t: t, members: map[uint64]*member{}, stall: 2 * time.Second}
	r.ctx, r.stop = context.WithCancel(context.Background())
	for i := range n {
		m := &member{rig: r, dir: t.TempDir(), tree: t.TempDir(), local: map[manifest.Hash]string{}}
		m.free.Store(1 << 50)
		r.members[uint64(i+1)] = m
		m.start()
	}
	t.Cleanup(func() {
		r.stop()
		for _, m := range r.members {
			m.cancel()
		}
		r.serving.Wait()
		for _, m := range r.members {
			if err := m.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	return r
}

func (m *member) start() {
	m.rig.t.Helper()
	s, err := Open(Options{
		Dir: m.dir, Now: m.now, Dial: m.rig.dial, Stall: m.rig.stall, Chunks: kv.NewMemory(),
		Free: func(string) (uint64, error) { return m.left(), nil },
		Local: func(h manifest.Hash, hint string) (Source, bool) {
			m.mu.Lock()
			defer m.mu.Unlock()
			f, err := os.Open(m.local[h])
			return f, err == nil
		},
		OpenPath: func(path string) (Source, bool) {
			f, err := os.Open(filepath.Join(m.tree, path))
			return f, err == nil
		},
	})
	if err != nil {
		m.rig.t.Fatal(err)
	}
	m.Store = s
}

// left is what is free: what lingers is not.
func (m *member) left() uint64 {
	free := m.free.Load()
	left, err := os.ReadDir(filepath.Join(m.dir, "gone"))
	if err != nil {
		return free // before the first start
	}
	for _, e := range left {
		if info, err := e.Info(); err == nil {
			free -= min(free, uint64(info.Size()))
		}
	}
	return free
}

func (m *member) now() time.Time { return time.Now().Add(time.Duration(m.age.Load())) }

// place writes a file of the binding, known by the hash of data.
func (m *member) place(name string, data []byte) {
	m.rig.t.Helper()
	path := filepath.Join(m.tree, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		m.rig.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local[blake3.Sum256(data)] = path
}

func (r *rig) dial(_ context.Context, node uint64) (net.Conn, error) {
	m := r.members[node]
	if m == nil {
		return nil, fmt.Errorf("no node %d", node)
	}
	near, far, err := connect()
	if err != nil {
		return nil, err
	}
	r.dialled.Add(1)
	r.serving.Go(func() {
		if err := m.Serve(r.ctx, far); err == nil {
			r.t.Error("Serve returned no reason")
		}
	})
	c := &cutConn{Conn: near}
	if n := r.cutAfter.Load(); n > 0 {
		c.left.Store(n)
		c.limited = true
	}
	return c, nil
}

func connect() (near, far net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	far, err = l.Accept()
	return near, far, err
}

// cutConn breaks after so many bytes both ways together.
type cutConn struct {
	net.Conn
	limited bool
	left    atomic.Int64
}

var errCut = errors.New("cable cut")

func (c *cutConn) spend(n int) bool {
	if c.limited && c.left.Add(-int64(n)) < 0 {
		_ = c.Conn.Close()
		return false
	}
	return true
}

func (c *cutConn) Write(p []byte) (int, error) {
	if !c.spend(len(p)) {
		return 0, errCut
	}
	return c.Conn.Write(p)
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.spend(n) {
		return 0, errCut
	}
	return n, err
}

func randomBytes(n int) []byte {
	var key [32]byte
	rand.Read(key[:])
	data := make([]byte, n)
	mrand.NewChaCha8(key).Read(data)
	return data
}

func small(n, size int) ([]Item, []Want) {
	items, wants := make([]Item, n), make([]Want, n)
	all := randomBytes(n * size)
	for i := range items {
		data := all[i*size : (i+1)*size]
		items[i] = Item{Hash: blake3.Sum256(data), Bytes: data}
		wants[i] = Want{Hash: items[i].Hash, Size: int64(size)}
	}
	return items, wants
}

func fileItem(path string, data []byte) Item {
	return Item{Hash: blake3.Sum256(data), Size: int64(len(data)), Open: func() (Source, error) { return os.Open(path) }}
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// holds fails the test unless the store yields exactly data.
func (m *member) holds(data []byte) {
	m.rig.t.Helper()
	r, ok, err := m.Open(blake3.Sum256(data), int64(len(data)))
	if err != nil || !ok {
		m.rig.t.Fatalf("content of %d bytes: ok %v, err %v", len(data), ok, err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		m.rig.t.Fatal(err)
	}
	if string(got) != string(data) {
		m.rig.t.Fatalf("content of %d bytes came back as other %d bytes", len(data), len(got))
	}
}
