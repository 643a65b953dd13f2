package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// zookeeperJar names what it needs besides.
	zookeeperJar = "/usr/share/java/zookeeper.jar"

	// zookeeperSessions is over how many sessions the writers are spread: 16 with 16 requests in flight each were its best.
	zookeeperSessions = 16
)

// zookeeper is an ensemble of three ZooKeeper servers, and sessions with their leader. It has no TLS.
type zookeeper struct {
	*servers
	addresses []string
	leader    []*zookeeperSession
}

func startZookeeper(ctx context.Context, dir string, writers int) (store, error) {
	const each = 3 // ports for clients, for followers, and for elections
	ports, err := freePorts(storeServers * each)
	if err != nil {
		return nil, err
	}
	z := &zookeeper{servers: newServers(dir)}
	ensemble := "tickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n"
	for i := range storeServers {
		ensemble += fmt.Sprintf("server.%d=127.0.0.1:%d:%d\n", i+1, ports[each*i+1], ports[each*i+2])
	}
	for i := range storeServers {
		data := filepath.Join(dir, fmt.Sprintf("z%d", i+1))
		z.addresses = append(z.addresses, fmt.Sprintf("127.0.0.1:%d", ports[each*i]))
		config := fmt.Sprintf("%sdataDir=%s\nclientPortAddress=127.0.0.1\nclientPort=%d\n", ensemble, data, ports[each*i])
		if err := errors.Join(os.MkdirAll(data, 0o755), os.WriteFile(filepath.Join(data, "myid"), fmt.Append(nil, i+1), 0o644),
			os.WriteFile(data+".cfg", []byte(config), 0o644),
			z.start(nil, "java", "-Xmx1g", "-cp", zookeeperJar, "org.apache.zookeeper.server.quorum.QuorumPeerMain", data+".cfg")); err != nil {
			return nil, errors.Join(err, z.stop())
		}
	}
	if err := z.connect(ctx, min(writers, zookeeperSessions), writers); err != nil {
		return nil, errors.Join(err, z.stop())
	}
	return z, nil
}

// connect waits until a server leads, opens sessions with it, and makes a node for each writer.
func (z *zookeeper) connect(ctx context.Context, sessions, writers int) error {
	var leader string
	if err := z.await(ctx, func() (err error) {
		leader, err = z.leading()
		return err
	}); err != nil {
		return err
	}
	for range sessions {
		s, err := dialZookeeper(ctx, leader)
		if err != nil {
			return fmt.Errorf("session with %s: %w", leader, err)
		}
		z.leader = append(z.leader, s)
	}
	for i := range writers {
		if err := z.leader[i%sessions].create(zookeeperPath(i)); err != nil {
			return fmt.Errorf("create %s: %w", zookeeperPath(i), err)
		}
	}
	return nil
}

// leading is the address of the server that says it leads.
func (z *zookeeper) leading() (string, error) {
	for _, address := range z.addresses {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return "", err
		}
		err = errors.Join(conn.SetDeadline(time.Now().Add(time.Second)), ignoreCount(io.WriteString(conn, "srvr")))
		answer, readErr := io.ReadAll(conn)
		if err := errors.Join(err, readErr, conn.Close()); err != nil {
			return "", err
		}
		if strings.Contains(string(answer), "Mode: leader") {
			return address, nil
		}
	}
	return "", errors.New("no zookeeper leads")
}

func ignoreCount(_ int, err error) error { return err }

func zookeeperPath(writer int) string { return fmt.Sprintf("/k%d", writer) }

func (z *zookeeper) put(_ context.Context, writer int, value []byte) error {
	return z.leader[writer%len(z.leader)].set(zookeeperPath(writer), value)
}

func (z *zookeeper) stop() error {
	for _, s := range z.leader {
		s.close()
	}
	return z.servers.stop()
}

// zookeeperSession is one session over one connection. Requests are answered in their order, many may be in flight.
// All ends with the context of its start.
type zookeeperSession struct {
	conn   net.Conn
	ended  chan struct{} // closed after err is set
	err    error
	mu     sync.Mutex // the order of requests on the connection is that of their xids, and of waiting
	xid    int32
	queued chan zookeeperRequest
}

type zookeeperRequest struct {
	xid  int32
	done chan<- error
}

const zookeeperInFlight = 1024

func dialZookeeper(ctx context.Context, address string) (*zookeeperSession, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	hello := make([]byte, 4+8) // version 0, has seen nothing
	hello = binary.BigEndian.AppendUint32(hello, uint32(30*time.Second/time.Millisecond))
	hello = append(hello, make([]byte, 8)...)           // a new session
	hello = appendJute(hello, string(make([]byte, 16))) // no password
	hello = append(hello, 0)                            // not only to read
	_, err = conn.Write(jute(hello))
	if err == nil {
		_, err = readJute(conn)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s := &zookeeperSession{conn: conn, ended: make(chan struct{}), queued: make(chan zookeeperRequest, zookeeperInFlight)}
	go s.receive()
	return s, nil
}

// receive hands out answers until the connection ends.
func (s *zookeeperSession) receive() {
	defer close(s.ended)
	for {
		reply, err := readJute(s.conn)
		if err == nil && len(reply) < 16 { // xid, zxid, error
			err = fmt.Errorf("an answer of %d bytes", len(reply))
		}
		if err != nil {
			s.err = err
			return
		}
		next := <-s.queued
		if xid := int32(binary.BigEndian.Uint32(reply)); xid != next.xid {
			s.err = fmt.Errorf("answer %d instead of %d", xid, next.xid)
			return
		}
		if code := int32(binary.BigEndian.Uint32(reply[12:])); code != 0 {
			err = fmt.Errorf("zookeeper says error %d", code)
		}
		next.done <- err
	}
}

// close ends the connection and waits for its reader.
func (s *zookeeperSession) close() {
	s.conn.Close()
	<-s.ended
}

// call sends a request and waits for its answer.
func (s *zookeeperSession) call(operation uint32, body []byte) error {
	done := make(chan error, 1)
	s.mu.Lock()
	s.xid++
	message := binary.BigEndian.AppendUint32(nil, uint32(s.xid))
	message = append(binary.BigEndian.AppendUint32(message, operation), body...)
	var err error
	select {
	case s.queued <- zookeeperRequest{s.xid, done}:
		_, err = s.conn.Write(jute(message))
	case <-s.ended:
		err = s.err
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-s.ended:
		return s.err
	}
}

// create makes an empty node that anybody may change.
func (s *zookeeperSession) create(path string) error {
	const operation, all, persistent = 1, 31, 0
	body := appendJute(appendJute(nil, path), "")
	body = binary.BigEndian.AppendUint32(body, 1) // permission
	body = binary.BigEndian.AppendUint32(body, all)
	body = appendJute(appendJute(body, "world"), "anyone")
	return s.call(operation, binary.BigEndian.AppendUint32(body, persistent))
}

// set overwrites a node's value, whatever its version.
func (s *zookeeperSession) set(path string, value []byte) error {
	const operation, anyVersion = 5, 1<<32 - 1
	body := appendJute(appendJute(nil, path), string(value))
	return s.call(operation, binary.BigEndian.AppendUint32(body, anyVersion))
}

// appendJute appends a string or buffer as the protocol writes it.
func appendJute(to []byte, v string) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(v))), v...)
}

// jute frames a message.
func jute(message []byte) []byte { return appendJute(nil, string(message)) }

// readJute reads one frame.
func readJute(r io.Reader) ([]byte, error) {
	const most = 1 << 20
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > most {
		return nil, fmt.Errorf("a frame of %d bytes", size)
	}
	message := make([]byte, size)
	_, err := io.ReadFull(r, message)
	return message, err
}
