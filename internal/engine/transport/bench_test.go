package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}

// BenchmarkSend measures one 256-byte message at a time, from Send to OnMessages.
func BenchmarkSend(b *testing.B) {
	f := newFarm(b, 1)
	arrived := make(chan time.Time, 1)
	a := f.node(1, nil, nil)
	f.node(2, func(c *Config) {
		c.OnMessages = func(uint64, uint64, []*raftpb.Message) { arrived <- time.Now() }
	}, nil)
	typ := raftpb.MessageType_MsgApp
	m := []*raftpb.Message{{Type: &typ, Entries: []*raftpb.Entry{{Data: make([]byte, 256)}}}}
	a.Send(2, 1, m)
	<-arrived
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		a.Send(2, 1, m)
		took = append(took, (<-arrived).Sub(began))
	}
	percentiles(b, took)
}

// BenchmarkSendStream measures throughput of small messages, which batch themselves.
func BenchmarkSendStream(b *testing.B) {
	f := newFarm(b, 1)
	arrived := make(chan int, 1<<16)
	a := f.node(1, nil, nil)
	f.node(2, func(c *Config) {
		c.OnMessages = func(_, _ uint64, msgs []*raftpb.Message) { arrived <- len(msgs) }
	}, nil)
	typ := raftpb.MessageType_MsgApp
	m := []*raftpb.Message{{Type: &typ, Entries: []*raftpb.Entry{{Data: make([]byte, 256)}}}}
	const window = 4096
	open := 0
	for b.Loop() {
		a.Send(2, 1, m)
		for open++; open >= window; {
			open -= <-arrived
		}
	}
}

func BenchmarkCall(b *testing.B) {
	f := newFarm(b, 1)
	a := f.node(1, nil, nil)
	f.node(2, nil, func(t *Transport) {
		t.HandleCalls("echo", func(_ context.Context, _ uint64, req []byte) ([]byte, error) { return req, nil })
	})
	req := make([]byte, 256)
	call := func() {
		if _, err := a.Call(b.Context(), 2, "echo", req); err != nil {
			b.Error(err)
		}
	}
	call()
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			b.SetParallelism(callers)
			if callers > 1 {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						call()
					}
				})
				return
			}
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				call()
				took = append(took, time.Since(began))
			}
			percentiles(b, took)
		})
	}
}

// BenchmarkBulk measures a service connection that is written in pieces of the given size.
func BenchmarkBulk(b *testing.B) {
	for _, size := range []int{16 << 10, 256 << 10, 1 << 20} {
		b.Run(fmt.Sprint("write=", size), func(b *testing.B) {
			f := newFarm(b, 1)
			a := f.node(1, nil, nil)
			f.node(2, nil, func(t *Transport) {
				t.Handle("sink", func(_ context.Context, _ uint64, c net.Conn) {
					buf := make([]byte, 256<<10)
					for {
						if _, err := c.Read(buf); err != nil {
							_, _ = io.WriteString(c, ".")
							return
						}
					}
				})
			})
			c, err := a.Open(b.Context(), 2, "sink")
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := c.Write(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
