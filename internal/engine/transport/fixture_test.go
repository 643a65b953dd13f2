package transport

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture reads what nodes say to each other as version 1 wrote it.
func TestFixture(t *testing.T) {
	h := hello{version: helloVersion, cluster: access.ClusterID{1, 2}, from: 2, to: 3, boot: 4, age: 7, service: "raft", address: "h:1"}
	a := answer{verdict: denied, boot: 5, age: 6, text: `{"code":"denied"}`}
	m := message("beat")[0]
	failed := &api.Error{Code: api.CodeConflict, Op: "op", Subject: "s", Why: "why", Hint: "hint"}
	messages, taken, err := appendMessages(nil, []outgoing{{1 << 40, m, 0}, {2, m, 0}})
	if err != nil || taken != 2 {
		t.Fatal(taken, err)
	}
	held := fixture.Check(t, "wire-1.hex", map[string][]byte{
		"hello": h.append(nil), "answer": a.append(nil), "messages": messages, "ping": appendControl(nil, kindPing, make([]byte, pingBody)),
		"request": encodeRequest(8, 3*time.Second, "engine.read", []byte("req")), "reply": encodeReply(8, []byte("resp")), "failure": encodeFailure(9, failed)})

	if got, err := parseHello(held["hello"][4:]); err != nil || got != h {
		t.Errorf("hello %+v, %v", got, err)
	}
	if got, err := parseAnswer(held["answer"][4:]); err != nil || got != a {
		t.Errorf("answer %+v, %v", got, err)
	}
	var groups []uint64
	err = parseMessages(frameBody(t, held["messages"], kindMessages), func(group uint64, msgs []*raftpb.Message) {
		for _, got := range msgs {
			if groups = append(groups, group); !proto.Equal(got, m) {
				t.Errorf("message %v", got)
			}
		}
	})
	if err != nil || len(groups) != 2 || groups[0] != 1<<40 || groups[1] != 2 {
		t.Errorf("messages of %v, %v", groups, err)
	}
	if body := frameBody(t, held["ping"], kindPing); !bytes.Equal(body, make([]byte, pingBody)) {
		t.Errorf("ping %x", body)
	}
	f := callOf(t, held["request"], callRequest, 8)
	if timeout, method, req, err := parseRequest(f.body); err != nil || timeout != 3*time.Second || method != "engine.read" || string(req) != "req" {
		t.Errorf("request %v, %s, %q, %v", timeout, method, req, err)
	}
	if f := callOf(t, held["reply"], callReply, 8); string(f.body) != "resp" {
		t.Errorf("reply %q", f.body)
	}
	var said *api.Error
	if err := parseFailure(callOf(t, held["failure"], callFailure, 9).body); !errors.As(err, &said) || *said != *failed {
		t.Errorf("failure %v", err)
	}
}

func frameBody(t *testing.T, frame []byte, want kind) []byte {
	t.Helper()
	r := bytes.NewReader(frame)
	var head [frameHead]byte
	k, n, err := readHead(r, &head)
	if err != nil || k != want {
		t.Fatalf("frame of kind %v, %v", k, err)
	}
	body, err := readBody(r, nil, n)
	if err != nil || r.Len() > 0 {
		t.Fatalf("%d bytes left, %v", r.Len(), err)
	}
	return body
}

func callOf(t *testing.T, b []byte, want callKind, id uint64) callFrame {
	t.Helper()
	f, err := readCall(bytes.NewReader(b))
	if err != nil || f.kind != want || f.id != id {
		t.Fatalf("call frame %+v, %v", f, err)
	}
	return f
}
