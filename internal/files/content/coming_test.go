package content

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
)

// TestVoidIsNotOffered: what nobody waits for any more is not offered.
func TestVoidIsNotOffered(t *testing.T) {
	r := newRig(t, 2)
	data := randomBytes(1 << 20)
	r.members[2].place("here already", data)
	item := fileItem(writeFile(t, data), data)
	void := true
	item.Void = func() bool { return void }
	for range 2 {
		if err := r.members[1].Pusher(2).Push(t.Context(), []Item{item}); err != nil {
			t.Fatal(err)
		}
		if got := r.members[2].Has(item.Hash); got == void {
			t.Errorf("void: %v, staged: %v", void, got)
		}
		void = false
	}
}

// gated is a content that is sent only once gate is closed; begun is closed when it is to be.
type gated struct {
	Source
	begun, gate chan struct{}
	once        *sync.Once
}

func (g gated) ReadAt(p []byte, off int64) (int, error) {
	g.once.Do(func() { close(g.begun) })
	<-g.gate
	return g.Source.ReadAt(p, off)
}

// asked is a context that tells when somebody waits for its end.
type asked struct {
	context.Context
	once *sync.Once
	tell func()
}

func (a asked) Done() <-chan struct{} {
	a.once.Do(a.tell)
	return a.Context.Done()
}

// A content that is being received is not fetched as well, from whomever: it travels, and is staged, once.
func TestReceivedIsNotFetchedToo(t *testing.T) {
	r := newRig(t, 3)
	data := randomBytes(3 << 20)
	r.members[3].place("there", data)
	m := r.members[2]
	begun, gate := make(chan struct{}), make(chan struct{})
	file := writeFile(t, data)
	item := Item{Hash: blake3.Sum256(data), Size: int64(len(data)), Open: func() (Source, error) {
		f, err := os.Open(file)
		return gated{f, begun, gate, &sync.Once{}}, err
	}}
	pushed := make(chan error, 1)
	go func() { pushed <- r.members[1].Pusher(2).Push(context.WithoutCancel(t.Context()), []Item{item}) }()
	<-begun
	ctx := asked{t.Context(), &sync.Once{}, func() { close(gate) }}
	missing, err := m.Fetch(ctx, []uint64{3}, []Want{{Hash: item.Hash, Size: item.Size}})
	if err := errors.Join(err, <-pushed); err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	if got := m.Stats().Traffic.Received; got != int64(len(data)) {
		t.Errorf("%d bytes received for a content of %d", got, len(data))
	}
	if err := errors.Join(m.Release(item.Hash), m.Drop(item.Hash)); err != nil {
		t.Fatal(err)
	}
	if m.Has(item.Hash) {
		t.Error("staged once more than needed")
	}
}
