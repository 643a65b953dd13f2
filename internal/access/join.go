package access

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// MaxJoinMessage bounds a join message on the wire, in bytes.
const MaxJoinMessage = 64 << 10

const (
	maxCSR   = 4 << 10
	maxPeers = 256
)

// JoinRequest is what a server with a token says first on a join connection.
type JoinRequest struct {
	Token   TokenID `json:"token"`
	Secret  Secret  `json:"secret"`
	Name    string  `json:"name"`
	Address string  `json:"address"`             // host:port at which the other nodes reach it
	CSR     []byte  `json:"csr"`                 // DER, see NewCSR
	Version string  `json:"version"`             // of the software, for people
	Level   int     `json:"level"`               // newest cluster level that its program knows
	Min     int     `json:"min_level,omitempty"` // and the oldest; 0: 1
	Zone    string  `json:"zone,omitempty"`
	Replace bool    `json:"replace"` // take the place of the node of that name, whose data is lost
}

// JoinPeer is a node that the new one can talk to.
type JoinPeer struct {
	Node    uint64 `json:"node,string"`
	Name    string `json:"name"`
	Address string `json:"address"`
}

// JoinReply answers a JoinRequest: either Error, or everything else.
type JoinReply struct {
	Node    uint64     `json:"node,string,omitempty"`
	Cluster ClusterID  `json:"cluster"`
	Cert    []byte     `json:"cert,omitempty"` // PEM
	CA      []byte     `json:"ca,omitempty"`   // PEM
	Peers   []JoinPeer `json:"peers,omitempty"`
	Level   int        `json:"level,omitempty"` // of the cluster; 0: 1
	Error   *api.Error `json:"error,omitempty"`
}

// Identity makes the joined node's identity from the answer, and checks that it is what the token promised
// and what was asked for: the pinned CA, the cluster, the own key, the own name. The caller has looked at
// r.Error.
func (r *JoinReply) Identity(t *Token, key ed25519.PrivateKey, name string, now func() time.Time) (*Identity, error) {
	id, err := NewIdentity(key, r.Cert, r.CA, now)
	if err != nil {
		return nil, fmt.Errorf("join cluster %s: answer: %w", t.Cluster, err)
	}
	switch {
	case id.cluster != t.Cluster || r.Cluster != t.Cluster:
		err = fmt.Errorf("certificate of cluster %s: %w", id.cluster, ErrOtherCluster)
	case Fingerprint(sha256.Sum256(id.ca.Raw)) != t.CA:
		err = fmt.Errorf("not the CA that the token pins: %w", ErrNotOfCA)
	case id.node != r.Node || id.name != name:
		err = fmt.Errorf("certificate of node %016x (%s), want %016x (%s): %w", id.node, id.name, r.Node, name, ErrOtherNode)
	}
	if err != nil {
		return nil, fmt.Errorf("join cluster %s: answer: %w", t.Cluster, err)
	}
	id.level = max(1, r.Level)
	return id, nil
}

// WriteTo sends the request: u32 length, JSON. One call, one Write.
func (r *JoinRequest) WriteTo(w io.Writer) (int64, error) { return writeJoin(w, r) }

// WriteTo sends the reply in the same form as a request.
func (r *JoinReply) WriteTo(w io.Writer) (int64, error) { return writeJoin(w, r) }

// ReadJoinRequest reads and checks one request; fields that it does not know are left aside.
func ReadJoinRequest(r io.Reader) (*JoinRequest, error) {
	m := &JoinRequest{}
	if err := readJoin(r, m); err != nil {
		return nil, fmt.Errorf("read join request: %w", err)
	}
	err := CheckName(m.Name)
	switch {
	case err != nil:
	case checkAddr(m.Address) != nil:
		err = checkAddr(m.Address)
	case len(m.CSR) == 0 || len(m.CSR) > maxCSR:
		err = fmt.Errorf("certificate request of %d bytes", len(m.CSR))
	case m.Level < 1 || m.Min < 0 || m.Min > m.Level:
		err = fmt.Errorf("levels %d to %d", m.Min, m.Level)
	case len(m.Version) > 128:
		err = fmt.Errorf("version of %d bytes", len(m.Version))
	}
	if err != nil {
		return nil, fmt.Errorf("read join request: %w: %w", ErrMessage, err)
	}
	return m, nil
}

// ReadJoinReply reads and checks one reply; see JoinReply.Identity for what it means.
func ReadJoinReply(r io.Reader) (*JoinReply, error) {
	m := &JoinReply{}
	if err := readJoin(r, m); err != nil {
		return nil, fmt.Errorf("read join reply: %w", err)
	}
	if m.Error == nil && (m.Node == 0 || len(m.Cert) == 0 || len(m.CA) == 0) || len(m.Peers) > maxPeers {
		return nil, fmt.Errorf("read join reply: %w: incomplete", ErrMessage)
	}
	return m, nil
}

func writeJoin(w io.Writer, m any) (int64, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return 0, fmt.Errorf("write join message: %w", err)
	}
	if len(body) > MaxJoinMessage {
		return 0, fmt.Errorf("write join message: %w: %d bytes", ErrMessage, len(body))
	}
	n, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	if err != nil {
		return int64(n), fmt.Errorf("write join message: %w", err)
	}
	return int64(n), nil
}

func readJoin(r io.Reader, m any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxJoinMessage {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMessage, n, MaxJoinMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, m); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return nil
}
