package content

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

func FuzzBodies(f *testing.F) {
	f.Add(appendWant(nil, Want{Hash: manifest.Hash{1}, Size: 1 << 30, PathHint: "a/b"}))
	f.Add(appendRecipe(nil, chunk.Recipe{{Hash: manifest.Hash{2}, Len: 70000}}))
	f.Add(appendRefusal(nil, codeChanged, []uint32{1, 2}))
	f.Fuzz(func(t *testing.T, body []byte) {
		if w, rest, err := parseWant(body); err == nil {
			if again := append(appendWant(nil, w), rest...); !bytes.Equal(again, body) {
				t.Fatalf("want %+v", w)
			}
		}
		if seg, err := parseRecipe(body); err == nil && !bytes.Equal(appendRecipe(nil, seg), body) {
			t.Fatal("recipe")
		}
		if c, indices, err := parseRefusal(body); err == nil && !bytes.Equal(appendRefusal(nil, c, indices), body) {
			t.Fatal("refusal")
		}
	})
}

func TestHeadLimits(t *testing.T) {
	for k := range kindLimit + 3 {
		limit := bodyMax(k)
		for _, n := range []int{limit, limit + 1, 1 << 31} {
			var head [frameHead]byte
			binary.LittleEndian.PutUint32(head[:], uint32(n))
			head[4] = byte(k)
			_, _, err := parseHead(head[:])
			if ok := k > 0 && k < kindLimit && n == limit; (err == nil) != ok {
				t.Errorf("kind %d of %d bytes: %v", k, n, err)
			}
		}
		if k > 0 && k < kindLimit && limit > frameSpace-frameHead {
			t.Errorf("kind %d does not fit a buffer", k)
		}
	}
}

// FuzzServe plays a peer that says anything: Serve must end with a reason, and stage nothing wrong.
func FuzzServe(f *testing.F) {
	hello := helloFrame()
	w := Want{Hash: manifest.Hash{1}, Size: 1 << 20}
	f.Add(append(hello, finishFrame(appendWant(beginFrame(nil, kindOffer, 1), w))...))
	f.Add(append(hello, finishFrame(appendWant(beginFrame(nil, kindGetLarge, 1), w))...))
	f.Add(append(hello, finishFrame(appendWant(beginFrame(nil, kindGetSmall, 1), Want{Size: 5}))...))
	f.Add(append(hello, finishFrame(beginFrame(nil, kindSmall, 1))...))
	f.Add([]byte{6, 0, 0, 0, 2, 1, 2, 3})
	f.Fuzz(func(t *testing.T, said []byte) {
		s, err := Open(Options{Dir: t.TempDir(), Now: time.Now, Free: func(string) (uint64, error) { return 1 << 40, nil }})
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(context.Background(), far) }()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, near) // until either side closes
		}()
		_, _ = near.Write(said) // fails if Serve has heard enough
		_ = near.Close()
		if err := <-ended; err == nil {
			t.Error("no reason")
		}
		<-drained
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestPeerBreaksRules: each of these ends the connection, with a reason that says so.
func TestPeerBreaksRules(t *testing.T) {
	small := func(number uint64) []byte { return finishFrame(beginFrame(nil, kindSmall, number)) }
	offer := func(id uint64, size int64) []byte {
		return finishFrame(appendWant(beginFrame(nil, kindOffer, id), Want{Hash: manifest.Hash{1}, Size: size}))
	}
	recipe := func(seg ...chunk.Ref) []byte {
		return finishFrame(appendRecipe(beginFrame(nil, kindRecipe, 1), seg))
	}
	ref := func(n uint32) chunk.Ref { return chunk.Ref{Hash: manifest.Hash{7}, Len: n} }
	for name, frames := range map[string][][]byte{
		"no hello":            {small(1)},
		"other version":       {{6, 0, 0, 0, 2, 0x54, 0x43, 0x53, 0x4c, 9, 0}},
		"frame out of order":  {helloFrame(), small(2)},
		"torn record":         {helloFrame(), finishFrame(append(beginFrame(nil, kindSmall, 1), 1, 2, 3))},
		"small as large":      {helloFrame(), offer(1, 5)},
		"transfer twice":      {helloFrame(), offer(1, 1<<20), offer(1, 1<<20)},
		"answer to nothing":   {helloFrame(), finishFrame(beginFrame(nil, kindAck, 1))},
		"chunk too short":     {helloFrame(), offer(1, 1<<20), recipe(ref(1), ref(1<<20-1))},
		"recipe too long":     {helloFrame(), offer(1, 1<<20), recipe(ref(1<<20), ref(1<<20))},
		"recipe empty":        {helloFrame(), offer(1, 1<<20), recipe()},
		"chunk not asked for": {helloFrame(), offer(1, 1<<20), finishFrame(append(beginFrame(nil, kindChunk, 1), make([]byte, 50)...))},
		"second hello":        {helloFrame(), helloFrame()},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1)
			near, far, err := connect()
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			if _, err := near.Write(bytes.Join(frames, nil)); err != nil {
				t.Fatal(err)
			}
			err = r.members[1].Serve(t.Context(), far)
			if !errors.Is(err, errProtocol) || strings.Contains(err.Error(), "%!") {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestSilentPeer: a member that accepts and then says nothing fails a push within the stall time, on both sides.
func TestSilentPeer(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go func() { _, _ = io.Copy(io.Discard, far) }() // ends with the pipe
	s, err := Open(Options{
		Dir: t.TempDir(), Now: time.Now, Stall: 50 * time.Millisecond,
		Dial: func(context.Context, uint64) (net.Conn, error) { return near, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	items, _ := small(1, 100)
	var timeout net.Error
	if err := s.Pusher(2).Push(t.Context(), items); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("push: %v", err)
	}
	mute, served := net.Pipe()
	defer mute.Close()
	if err := s.Serve(t.Context(), served); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("serve: %v", err)
	}
}

// TestSlowWorkIsNotDead: a source that takes longer than the stall time to read does not break the connection.
func TestSlowWorkIsNotDead(t *testing.T) {
	r := newRig(t, 2)
	data := randomBytes(1 << 20)
	r.members[1].opts.Stall = 400 * time.Millisecond
	r.members[2].opts.Stall = 400 * time.Millisecond
	item := fileItem(writeFile(t, data), data)
	open := item.Open
	item.Open = func() (Source, error) {
		<-time.After(time.Second) // what is tested is that this takes its time
		return open()
	}
	if err := r.members[1].Pusher(2).Push(t.Context(), []Item{item}); err != nil {
		t.Fatal(err)
	}
	r.members[2].holds(data)
}

func TestIdleConnectionIsClosedAndReopened(t *testing.T) {
	r := newRig(t, 2)
	m := r.members[1]
	m.opts.Stall, m.opts.Idle = time.Second, 1
	r.members[2].opts.Stall = time.Second
	p := m.Pusher(2)
	for i := range 3 {
		items, _ := small(1, 100)
		if err := p.Push(t.Context(), items); err != nil {
			t.Fatal(err)
		}
		r.serving.Wait() // for the other side to see it closed
		if n := r.dialled.Load(); n != int64(i+1) {
			t.Fatalf("%d connections after %d pushes", n, i+1)
		}
	}
}

func BenchmarkPush5K(b *testing.B) {
	r := newRig(b, 2)
	p := r.members[1].Pusher(2)
	const each = 2000
	b.SetBytes(each * 5000)
	n := 0
	for b.Loop() {
		b.StopTimer()
		items, _ := small(each, 5000)
		b.StartTimer()
		if err := p.Push(b.Context(), items); err != nil {
			b.Fatal(err)
		}
		n += each
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkFetch5K(b *testing.B) {
	r := newRig(b, 2)
	const each = 4000
	b.SetBytes(each * 5000)
	n := 0
	for b.Loop() {
		b.StopTimer()
		items, wants := small(each, 5000)
		for _, it := range items {
			if err := r.members[2].Put(it.Hash, it.Bytes); err != nil {
				b.Fatal(err)
			}
		}
		if err := r.members[2].Sync(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if missing, err := r.members[1].Fetch(b.Context(), []uint64{2}, wants); err != nil || len(missing) > 0 {
			b.Fatal(len(missing), err)
		}
		n += each
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkPushLarge(b *testing.B) {
	r := newRig(b, 2)
	p := r.members[1].Pusher(2)
	data := randomBytes(128 << 20)
	path := writeFile(b, data)
	b.SetBytes(int64(len(data)))
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		data[n<<10]++
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
		item := fileItem(path, data)
		if err := errors.Join(r.members[2].Release(item.Hash), r.members[2].Drop(item.Hash)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := p.Push(b.Context(), []Item{item}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := errors.Join(r.members[2].Release(item.Hash), r.members[2].Drop(item.Hash)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
