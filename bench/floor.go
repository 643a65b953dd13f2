package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/access"
)

// floor is the least that quorum writes of one writer cost on this machine: a leader and two followers that pass
// messages on over TLS on loopback, write a block each and sync it, and count to two of three. There are no terms, no
// checksums, no state, no sessions, and nobody else to serve. What an engine needs beyond it is the engine's own.
type floor struct {
	conns  []*tls.Conn   // to the followers
	asked  chan struct{} // a write for the leader's own disk
	synced chan member   // who has one more write on its disk
	count  [3]uint64     // writes that each has on its disk
	puts   uint64
	parts  sync.WaitGroup
}

// member is a place in floor.count, or why one gave up.
type member struct {
	at  int
	err error
}

const (
	floorEntry  = 300 // bytes of a message that brings 256
	floorAnswer = 60  // bytes of one that confirms
)

// measureFloor has one writer write, as measureEngine has.
func measureFloor(ctx context.Context, dir string) (w writing, cost float64, err error) {
	f := &floor{asked: make(chan struct{}, 64), synced: make(chan member, 64)}
	defer func() { err = errors.Join(err, f.stop()) }()
	if err := f.start(dir); err != nil {
		return w, 0, err
	}
	return writeAtCost(ctx, 1, f.put)
}

func (f *floor) start(dir string) error {
	own, err := newFloorDisk(dir, "leader")
	if err != nil {
		return err
	}
	f.parts.Go(func() {
		defer own.Close()
		for range f.asked {
			f.synced <- member{0, own.write()}
		}
	})
	ca, err := access.NewCA(access.ClusterID{}, time.Now(), rand.Reader)
	if err != nil {
		return err
	}
	leader, err := newIdentity(ca, 1)
	if err != nil {
		return err
	}
	for at := 1; at <= 2; at++ {
		follower, err := newIdentity(ca, uint64(at+1))
		if err != nil {
			return err
		}
		if err := f.follow(dir, at, leader, follower); err != nil {
			return err
		}
	}
	return nil
}

// follow starts a follower and what the leader has for it.
func (f *floor) follow(dir string, at int, leader, follower *access.Identity) error {
	disk, err := newFloorDisk(dir, follower.Name())
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", follower.Server())
	if err != nil {
		return errors.Join(err, disk.Close())
	}
	f.parts.Go(func() {
		defer disk.Close()
		c, err := l.Accept()
		if err != nil {
			return // the dialler's error says it
		}
		defer c.Close()
		confirm(c, disk)
	})
	c, err := tls.Dial("tcp", l.Addr().String(), leader.Client(follower.Node()))
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	f.conns = append(f.conns, c)
	f.parts.Go(func() {
		answer := make([]byte, floorAnswer)
		for {
			if _, err := io.ReadFull(c, answer); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					f.synced <- member{at, fmt.Errorf("follower %d: %w", at, err)}
				}
				return
			}
			f.synced <- member{at, nil}
		}
	})
	return nil
}

// confirm answers each message once it is on disk, until the connection or the disk fails, which its other end sees.
func confirm(c net.Conn, disk *floorDisk) {
	message := make([]byte, floorEntry)
	for {
		if _, err := io.ReadFull(c, message); err != nil {
			return
		}
		if disk.write() != nil {
			return
		}
		if _, err := c.Write(message[:floorAnswer]); err != nil {
			return
		}
	}
}

// put returns when two of the three have the write on disk. There is one writer.
func (f *floor) put(_ context.Context, _ int, value []byte) error {
	f.puts++
	message := make([]byte, floorEntry)
	copy(message, value)
	for _, c := range f.conns {
		if _, err := c.Write(message); err != nil {
			return err
		}
	}
	f.asked <- struct{}{}
	for {
		m := <-f.synced
		if m.err != nil {
			return m.err
		}
		f.count[m.at]++
		have := 0
		for _, n := range f.count {
			if n >= f.puts {
				have++
			}
		}
		if have >= 2 {
			return nil
		}
	}
}

// stop ends all parts; what is on its way is let go.
func (f *floor) stop() error {
	var errs []error
	for _, c := range f.conns {
		errs = append(errs, c.NetConn().Close())
	}
	close(f.asked)
	ended := make(chan struct{})
	go func() {
		f.parts.Wait()
		close(ended)
	}()
	for {
		select {
		case <-f.synced:
		case <-ended:
			return errors.Join(errs...)
		}
	}
}

// floorDisk is a file of zeros that is written to from its begin to its end, again and again, as segments of a log are.
type floorDisk struct {
	*os.File
	at int64
}

const (
	floorBlock = 4 << 10
	floorSize  = 16 << 20
)

func newFloorDisk(dir, name string) (*floorDisk, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(make([]byte, floorSize)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &floorDisk{File: f}, nil
}

func (d *floorDisk) write() error {
	block := make([]byte, floorBlock)
	if _, err := unix.Pwritev2(int(d.Fd()), [][]byte{block}, d.at, unix.RWF_DSYNC); err != nil {
		return fmt.Errorf("write %s: %w", d.Name(), err)
	}
	d.at = (d.at + floorBlock) % floorSize
	return nil
}
