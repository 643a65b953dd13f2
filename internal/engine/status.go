package engine

import (
	"fmt"
	"net"
	"sync"
	"time"

	"bufio"

	"go.etcd.io/raft/v3/raftpb"
)

type deadlineWriter interface {
	Write([]byte) (int, error)
	SetWriteDeadline(time.Time) error
}

// readFeed turns a connection into frames; a source that is silent for feedDeadline counts as gone.
func readFeed(conn net.Conn, in *bufio.Reader, frames chan<- []byte, stop <-chan struct{}) error {
	for {
		if err := conn.SetReadDeadline(time.Now().Add(feedDeadline)); err != nil {
			return err
		}
		kind, body, err := readFrame(in)
		if err != nil {
			return err
		}
		if kind != frameEntries {
			return fmt.Errorf("engine: unexpected frame %d in a feed", kind)
		}
		select {
		case frames <- body:
		case <-stop:
			return ErrClosed
		}
	}
}

// How a replica came by what it lacked.
const (
	modeLive = "live"
	modeDiff = "diff"
	modeSnap = "snap"
)

// Catchup says how this replica last caught up.
type Catchup struct {
	Mode string // live, diff or snap
	Why  string
	From uint64 // applied index when it started
}

// catchupLog remembers how this replica caught up since it started.
type catchupLog struct {
	mu      sync.Mutex
	last    Catchup
	opened  uint64
	applies bool
}

func (c *catchupLog) start(applied uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = applied
	c.last = Catchup{Mode: modeLive, Why: "nothing was missing", From: applied}
}

func (c *catchupLog) begin(mode, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = Catchup{Mode: mode, Why: why, From: c.opened}
	c.applies = true
}

// applied notes the first entries after a start: they came from the log of the leader, one way or another.
func (c *catchupLog) applied(entries []*raftpb.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.applies || len(entries) == 0 {
		return
	}
	c.applies = true
	c.last = Catchup{Mode: modeDiff, From: c.opened,
		Why: fmt.Sprintf("the log holds all entries after %d", c.opened)}
}

func (c *catchupLog) get() Catchup {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Catchup says how this replica last caught up.
func (g *Group) Catchup() Catchup { return g.catchup.get() }

// Catchup says how this observer last caught up.
func (o *Observer) Catchup() Catchup { return o.catchup.get() }
