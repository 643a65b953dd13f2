package transport

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
)

func TestMessagesRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		var batch []outgoing
		for range rng.IntN(12) + 1 {
			m := message("c")[0]
			for range rng.IntN(4) {
				m.Entries = append(m.Entries, &raftpb.Entry{Data: make([]byte, rng.IntN(softFrame/4))})
			}
			batch = append(batch, outgoing{rng.Uint64N(3) << (rng.IntN(7) * 10), m, 0})
		}
		next, frames := 0, 0
		for rest := batch; len(rest) > 0; frames++ {
			frame, n, err := appendMessages(nil, rest)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			rest = rest[n:]
			var head [frameHead]byte
			r := bytes.NewReader(frame)
			k, size, err := readHead(r, &head)
			if err != nil || k != kindMessages || size != len(frame)-frameHead {
				t.Fatalf("seed %d: head %v %d %v", seed, k, size, err)
			}
			body, err := readBody(r, nil, size)
			if err != nil || r.Len() != 0 {
				t.Fatalf("seed %d: %v, %d left", seed, err, r.Len())
			}
			err = parseMessages(body, func(group uint64, msgs []*raftpb.Message) {
				for _, m := range msgs {
					if group != batch[next].group || !proto.Equal(m, batch[next].msg) {
						t.Fatalf("seed %d: message %d altered", seed, next)
					}
					next++
				}
			})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		if next != len(batch) {
			t.Fatalf("seed %d: %d of %d arrived", seed, next, len(batch))
		}
	}
}

// endless is a stream that claims much and delivers nothing; it fails the test if much room was made for it.
type endless struct{ t *testing.T }

func (e endless) Read(p []byte) (int, error) {
	if len(p) > 2<<20 {
		e.t.Errorf("%d bytes were set aside on the word of a header", len(p))
	}
	return 0, io.ErrUnexpectedEOF
}

func TestHeaderIsNotBelieved(t *testing.T) {
	if _, err := readBody(endless{t}, nil, MaxFrame); err == nil {
		t.Error("no error")
	}
	var head [frameHead]byte
	if _, _, err := readHead(bytes.NewReader([]byte{4, 0, 0, 1, byte(kindMessages)}), &head); !errors.Is(err, errFrame) {
		t.Errorf("one byte too many: %v", err)
	}
	if _, _, err := readHead(bytes.NewReader([]byte{4, 0, 0, 0, byte(kindMessages)}), &head); err != nil {
		t.Errorf("the largest frame: %v", err)
	}
}

func TestReadBodyKeepsNoHugeBuffer(t *testing.T) {
	buf, err := readBody(bytes.NewReader(make([]byte, 2*keepBuffer)), nil, 2*keepBuffer)
	if err != nil {
		t.Fatal(err)
	}
	if buf, err = readBody(bytes.NewReader(make([]byte, 10)), buf, 10); err != nil || cap(buf) > keepBuffer {
		t.Errorf("%d bytes kept, %v", cap(buf), err)
	}
}

func FuzzRaftFrame(f *testing.F) {
	frame, _, err := appendMessages(nil, []outgoing{{1, message("a")[0], 0}, {1 << 40, message("b")[0], 0}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add(appendControl(nil, kindPing, make([]byte, pingBody)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var head [frameHead]byte
		k, n, err := readHead(r, &head)
		if err != nil || k != kindMessages {
			return
		}
		body, err := readBody(r, nil, n)
		if err != nil {
			return
		}
		var batch []outgoing
		err = parseMessages(body, func(group uint64, msgs []*raftpb.Message) {
			for _, m := range msgs {
				batch = append(batch, outgoing{group, m, 0})
			}
		})
		if err != nil {
			if !errors.Is(err, errFrame) {
				t.Fatal(err)
			}
			return
		}
		if len(batch) == 0 {
			return
		}
		if _, taken, err := appendMessages(nil, batch); err != nil || taken != len(batch) {
			t.Fatalf("%d of %d, %v", taken, len(batch), err)
		}
	})
}

func FuzzHello(f *testing.F) {
	h := hello{version: helloVersion, cluster: access.ClusterID{1}, from: 2, to: 3, boot: 4, age: 7, service: "raft", address: "h:1"}
	f.Add(h.append(nil)[4:])
	f.Add([]byte("LKST\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err == nil && h.version == helloVersion && !bytes.Equal(h.append(nil)[4:], b) {
			t.Fatalf("%x is not what was parsed", b)
		}
		if err != nil && !errors.Is(err, errHello) {
			t.Fatal(err)
		}
		if a, err := parseAnswer(b); err == nil && len(a.text) <= maxText && !bytes.Equal(a.append(nil)[4:], b) {
			t.Fatalf("answer %x", b)
		}
		_, _ = readShort(bytes.NewReader(b))
	})
}

func FuzzCallFrame(f *testing.F) {
	f.Add(encodeRequest(1, 5, "method", []byte("req")))
	f.Add(encodeReply(2, nil))
	f.Add(sealCall(newCallFrame(callCancel, 3, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := readCall(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		switch fr.kind {
		case callRequest:
			timeout, method, req, err := parseRequest(fr.body)
			if err != nil {
				return
			}
			again := encodeRequest(fr.id, timeout, method, req)
			fr, err := readCall(bytes.NewReader(again))
			if err != nil {
				t.Fatal(err)
			}
			if _, m, r, err := parseRequest(fr.body); err != nil || m != method || !bytes.Equal(r, req) {
				t.Fatal(m, r, err)
			}
		case callFailure:
			if parseFailure(fr.body) == nil {
				t.Fatal("a failure became none")
			}
		}
	})
}

func TestErrorsAreClassified(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Why
	}{
		{&refusal{verdict: stopping}, Goodbye},
		{&refusal{verdict: wrongNode}, Closed},
		{io.EOF, Reset},
		{os.ErrDeadlineExceeded, Timeout},
		{access.ErrOtherCluster, Closed},
	} {
		if got := classifyDial(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}
