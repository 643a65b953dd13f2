package engine

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// TestCommitNews plays what a leader sends: e is a new entry, c one that changes the members, f the last once more, n news of the commit index, r
// another message, each with the replica that it is for; a dot lets a fifth of the patience pass, ? asks for what is
// overdue.
func TestCommitNews(t *testing.T) {
	for _, c := range []struct{ name, script, sent string }{
		{"a write that comes alone is announced at once", "e2 f3 n2 n3 ...... e2 f3 n2 n3", "e2 e3 n2 n3 e2 e3 n2 n3"},
		{"an entry close behind brings the news", "e2 f3 n2 n3 . e2 f3 n2 n3 . e2 f3 n2 n3", "e2 e3 n2 n3 e2 e3 e2 e3"},
		{"the last news is sent in the end", "e2 n2 . e2 n2 .... ? . ?", "e2 n2 e2 n2"},
		{"then the next is announced at once", "e2 n2 . e2 n2 ..... ? ..... e2 n2", "e2 n2 e2 n2 e2 n2"},
		{"later news replaces earlier", "e2 f3 n2 n3 . e2 f3 n2 n2 n3 ..... ?", "e2 e3 n2 n3 e2 e3 n2 n3"},
		{"the patience is that of the first", "e2 n2 . e2 n2 ... n3 .. ?", "e2 n2 e2 n2 n3"},
		{"a change of the members is announced", "e2 n2 . e2 . c2 n2 e2 n2", "e2 n2 e2 e2 n2 e2"},
		{"and also with an entry behind it", "e2 n2 . e2 . c2 e2 n2", "e2 n2 e2 e2 e2 n2"},
		{"what rests on the news comes after it", "e2 f3 n2 n3 . e2 f3 n2 n3 r3 ..... ?", "e2 e3 n2 n3 e2 e3 n3 r3 n2"},
		{"an entry that is sent again does not follow", "e2 n2 . f3 n3 ...... e2 f3 n2 n3", "e2 n2 e3 n3 e2 e3 n2 n3"},
		{"nothing is overdue", "?", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var news commitNews
			var sent []string
			now := time.Unix(100, 0)
			index := uint64(1)
			for _, word := range strings.Fields(c.script) {
				var out []*raftpb.Message
				switch word[0] {
				case '.':
					now = now.Add(time.Duration(len(word)) * newsPatience / 5)
				case '?':
					out = news.overdue(now)
				case 'e', 'c':
					index++
					fallthrough
				default:
					out = news.pass([]*raftpb.Message{scripted(word, index)}, now)
				}
				for _, m := range out {
					sent = append(sent, described(m))
				}
			}
			if got := strings.Join(sent, " "); !sameNews(got, c.sent) {
				t.Errorf("sent %q, want %q", got, c.sent)
			}
		})
	}
}

func scripted(word string, last uint64) *raftpb.Message {
	m := &raftpb.Message{To: new(uint64(word[1] - '0')), Type: raftpb.MsgApp.Enum(), Index: &last}
	switch word[0] {
	case 'e', 'f':
		m.Index, m.Entries = new(last-1), []*raftpb.Entry{{}}
	case 'c':
		m.Index, m.Entries = new(last-1), []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum()}}
	case 'r':
		m.Type = raftpb.MsgReadIndexResp.Enum()
	}
	return m
}

func described(m *raftpb.Message) string {
	kind := "n"
	if m.GetType() != raftpb.MsgApp {
		kind = "r"
	} else if len(m.GetEntries()) > 0 {
		kind = "e"
	}
	return fmt.Sprint(kind, m.GetTo())
}

// sameNews leaves open in which order different replicas get overdue news.
func sameNews(got, want string) bool {
	return got == want || strings.Replace(got, "n3 n2", "n2 n3", 1) == want
}

// TestNewsWithAClockSetBack: what was kept before does not wait for the clock.
func TestNewsWithAClockSetBack(t *testing.T) {
	var news commitNews
	now := time.Unix(100, 0)
	for last := range uint64(2) {
		news.pass([]*raftpb.Message{scripted("e2", last+1), scripted("n2", last+1)}, now)
	}
	if len(news.kept) != 1 {
		t.Fatal("nothing is kept")
	}
	if out := news.overdue(now.Add(-time.Hour)); len(out) != 1 {
		t.Errorf("%d messages are overdue, an hour before", len(out))
	}
}

// TestFollowersLearnOfCommits: at once of a write that comes alone, within newsPatience of the last of many.
func TestFollowersLearnOfCommits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		const between = time.Second + 10*time.Millisecond // not at the time of a tick, which brings news too
		f.write(1, 10)
		wait(between)
		behind := func() (n int) {
			synctest.Wait()
			for _, g := range f.groups {
				if g.Applied().Index < f.index {
					n++
				}
			}
			return n
		}
		for range 3 {
			f.write(1, 10)
			if n := behind(); n > 0 {
				t.Errorf("%d replicas have not learnt of a write that came alone", n)
			}
			wait(between)
		}
		f.write(10, 10)
		if n := behind(); n != 2 {
			t.Errorf("%d replicas have not learnt of the last of ten writes: nothing was kept back", n)
		}
		wait(newsPatience)
		if n := behind(); n > 0 {
			t.Errorf("%d replicas have not learnt of the last of ten writes in time", n)
		}
	})
}

// TestReadsDoNotWaitForNews: a follower that asks what is committed can apply it at once.
func TestReadsDoNotWaitForNews(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		for range 100 {
			f.write(10, 10)
			began := time.Now()
			for _, g := range f.groups {
				if g.Core().Role == core.Leader {
					continue
				}
				at, err := g.Barrier(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := g.WaitApplied(t.Context(), at); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(began); took > 0 {
				t.Fatalf("reads on followers took %v of a network that takes no time", took)
			}
		}
	})
}
