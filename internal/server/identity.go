package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
)

// start is what a node begins with: who it is, where the others are, and, for the first node of a cluster, the
// description that the control group does not hold yet.
type start struct {
	id   *access.Identity
	hint hint
	init *control.Init
}

// hint is DATA/cluster.json: what the node needs before it has read the control group's state. It is written
// whenever that state changes; of the others it is never the truth.
type hint struct {
	Node    uint64            `json:"node"`    // whose data directory this is
	Cluster string            `json:"cluster"` // in hex
	Role    string            `json:"role"`    // in the control group
	Replica uint64            `json:"replica,omitempty"`
	Recast  bool              `json:"recast,omitempty"` // as in owned
	Peers   map[uint64]string `json:"peers"`            // addresses
	// Opened is set once log and state exist: if one is missing later, it was lost.
	Opened bool `json:"opened"`
	// Starts counts how often the node has started with what is in state/, which counts as well (moment.go).
	Starts uint64 `json:"starts,omitempty"`
}

const (
	hintFile = "cluster.json"
	initFile = "init.json" // the cluster's description until the control group has it; holds the CA's key
)

// begin loads the identity of the data directory, or makes one: by joining with a token, or as the first node.
func begin(ctx context.Context, cfg Config, advertise string, data *dataDir) (*start, error) {
	id, err := access.Load(data.path, time.Now)
	switch {
	case err == nil:
		return resume(cfg, data, id)
	case !errors.Is(err, access.ErrNoIdentity):
		return nil, identityError(data.path, err)
	}
	if err := data.checkUnused(); err != nil {
		return nil, err
	}
	if cfg.Join != "" {
		return join(ctx, cfg, advertise, data)
	}
	if cfg.Replace {
		return nil, &api.Error{Code: api.CodeUsage, Op: "serve", Subject: data.path,
			Why:  "--replace takes the place of a node in a cluster, but no cluster is named and the data directory is empty",
			Hint: "add --join TOKEN; a node of the cluster makes one with: lockstep token create"}
	}
	return found(cfg, advertise, data)
}

func resume(cfg Config, data *dataDir, id *access.Identity) (*start, error) {
	if cfg.Name != "" {
		if err := id.CheckName(cfg.Name); err != nil {
			return nil, &api.Error{Code: api.CodeConflict, Op: "serve", Subject: data.path, Why: err.Error(),
				Hint: "leave --name out to go on as " + id.Name() + ", or give another node a data directory of its own with --data"}
		}
	}
	if _, unfit := knows().Act(id.Name(), uint64(id.Level()), 0); unfit != nil {
		return nil, unfit
	}
	s := &start{id: id}
	if cfg.Join != "" {
		tok, err := access.ParseToken(cfg.Join)
		if err != nil {
			return nil, &api.Error{Code: api.CodeDenied, Op: "join", Subject: "token", Why: err.Error(),
				Hint: "this server is a member already: leave --join out"}
		}
		if tok.Cluster != id.Cluster() {
			return nil, &api.Error{Code: api.CodeConflict, Op: "join", Subject: data.path,
				Why:  fmt.Sprintf("the data directory belongs to cluster %s, the token to %s", id.Cluster(), tok.Cluster),
				Hint: "use an empty data directory to join another cluster"}
		}
	}
	var init control.Init
	err := errors.Join(data.load(hintFile, &s.hint, false), data.load(initFile, &init, true))
	if err == nil {
		err = data.checkHint(&s.hint, id)
	}
	if init.Cluster.ID != "" {
		s.init = &init
	}
	return s, err
}

// found makes a new cluster of one. The description is on disk before the identity, so that a crash or an error at any
// point leaves either nothing or everything that is needed to go on.
func found(cfg Config, advertise string, data *dataDir) (*start, error) {
	var cluster access.ClusterID
	var history [16]byte
	rand.Read(cluster[:])
	rand.Read(history[:])
	now := time.Now()
	ca, err := access.NewCA(cluster, now, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	key, csr, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(csr, 1, cfg.Name, now)
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	id, err := access.NewIdentity(key, cert, ca.CertPEM(), time.Now)
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	s := &start{
		id:   id,
		hint: hint{Node: 1, Cluster: cluster.String(), Role: control.RoleVoter, Replica: 1, Peers: map[uint64]string{1: advertise}},
		init: &control.Init{
			Cluster: control.Cluster{ID: cluster.String(), CACert: ca.CertPEM(), CAKey: caKey, Level: uint64(id.Level())},
			Node:    control.Node{ID: 1, Name: cfg.Name, Address: advertise, Version: cfg.Version.Version, Zone: cfg.Zone, Levels: knows()},
			History: history,
		},
	}
	if err := writeJSON(data.sub(initFile), s.init); err != nil {
		return nil, startError(data.path, err)
	}
	return s, data.settle(s)
}

// settle makes the data directory that of the node that s begins with. The identity comes last, and only once everything
// else is there that a node with an identity starts from.
func (d *dataDir) settle(s *start) error {
	err := writeJSON(d.sub(hintFile), s.hint)
	if err == nil {
		err = access.Create(d.path, s.id)
	}
	return startError(d.path, err)
}

// join asks the nodes that the token names, one after the other, to let this server in.
func join(ctx context.Context, cfg Config, advertise string, data *dataDir) (*start, error) {
	tok, err := access.ParseToken(cfg.Join)
	if err == nil && tok.Expired(time.Now()) != nil {
		err = fmt.Errorf("it expired on %s", tok.Expires.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return nil, &api.Error{Code: api.CodeDenied, Op: "join", Subject: "token", Why: err.Error(),
			Hint: "make a new one on a node of the cluster with: lockstep token create"}
	}
	key, csr, err := newKey()
	if err != nil {
		return nil, err
	}
	req := &access.JoinRequest{
		Token: tok.ID, Secret: tok.Secret, Name: cfg.Name, Address: advertise, CSR: csr,
		Version: cfg.Version.Version, Level: api.Level, Min: api.MinLevel, Replace: cfg.Replace, Zone: cfg.Zone,
	}
	var reply *access.JoinReply
	for _, addr := range tok.Addrs {
		if reply, err = ask(ctx, addr, tok, req); err == nil {
			break
		}
	}
	if err != nil {
		return nil, notJoined(tok.Addrs, err)
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	id, err := reply.Identity(tok, key, cfg.Name, time.Now)
	if err != nil {
		return nil, err
	}
	s := &start{id: id, hint: hint{Node: id.Node(), Cluster: id.Cluster().String(), Peers: map[uint64]string{}}}
	for _, p := range reply.Peers {
		s.hint.Peers[p.Node] = p.Address
	}
	return s, data.settle(s)
}

// notJoined is about a cluster of which nobody could be asked; err is the last attempt's.
func notJoined(addrs []string, err error) error {
	e := &api.Error{Code: api.CodeUnavailable, Op: "join", Subject: strings.Join(addrs, ", "), Why: "no node of the cluster can be reached there: " + err.Error(),
		Hint: "see that one of them runs, and that this server reaches it on that port"}
	if name := (*net.DNSError)(nil); errors.As(err, &name) {
		e.Hint = fmt.Sprintf("this server does not find the name %s: make it resolve here, or start that node with --advertise IP:PORT and make a new token", name.Name)
	}
	return e
}

// checkBack makes sure that this node reaches a server that wants to join where it says that it is: one that cannot be
// reached would count among the voters and take the majority with it.
func checkBack(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, backPatience)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		return conn.Close()
	}
	return &api.Error{Code: api.CodeUnavailable, Op: "join", Subject: address, Why: "the cluster cannot reach the new server at this address: " + err.Error(),
		Hint: "start it with --advertise HOST:PORT as the other nodes reach it, and see that no firewall is between them"}
}

// backPatience bounds the look back at a server that joins.
const backPatience = 5 * time.Second

// joinPatience bounds one attempt to join through one node.
const joinPatience = 20 * time.Second

func ask(ctx context.Context, addr string, tok *access.Token, req *access.JoinRequest) (*access.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	conn, err := transport.DialJoin(ctx, nil, addr, tok, time.Now)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := req.WriteTo(conn); err != nil {
		return nil, err
	}
	return access.ReadJoinReply(conn)
}

// serveJoin lets a server with a token in.
func (n *node) serveJoin(ctx context.Context, conn net.Conn) {
	req, err := access.ReadJoinRequest(conn)
	if err != nil {
		n.log.Warn("join refused", "from", conn.RemoteAddr().String(), "err", err)
		return
	}
	reply, err := n.letIn(ctx, req)
	if err != nil {
		reply = &access.JoinReply{Cluster: n.id.Cluster(), Error: asAPIError("join", req.Name, err)}
		n.log.Warn("join refused", "name", req.Name, "from", conn.RemoteAddr().String(), "err", err)
	}
	if _, err := reply.WriteTo(conn); err != nil {
		n.log.Warn("join answer not sent", "name", req.Name, "err", err)
	}
}

func (n *node) letIn(ctx context.Context, req *access.JoinRequest) (*access.JoinReply, error) {
	ctl := n.ctl.member()
	if ctl == nil {
		return nil, errStarting
	}
	if _, err := ctl.Barrier(ctx); err != nil {
		return nil, err
	}
	st := n.ctl.state()
	if err := checkToken(st, req); err != nil {
		return nil, err
	}
	// Whatever could fail once the node is recorded is tried before: it would be a member that can never take part.
	if err := access.CheckCSR(req.CSR); err != nil {
		return nil, &api.Error{Code: api.CodeUsage, Op: "join", Subject: req.Name, Why: "its certificate request cannot be signed: " + err.Error(),
			Hint: "are both servers of the same version?"}
	}
	ca, err := access.LoadCA(st.Cluster.CACert, st.Cluster.CAKey, rand.Reader)
	if err != nil {
		return nil, err
	}
	if old, ok := st.NodeNamed(req.Name); ok && req.Replace && n.isUp(ctx, old.ID) {
		return nil, &api.Error{Code: api.CodeConflict, Op: "join", Subject: req.Name,
			Why: "the node of this name is up and has its data", Hint: "choose another --name, or stop that node first"}
	}
	if err := checkBack(ctx, req.Address); err != nil {
		return nil, err
	}
	r, err := n.ctl.propose(ctx, &control.Command{By: "token " + req.Token.String(), Join: &control.Join{
		Token: req.Token.String(), Name: req.Name, Address: req.Address, Version: req.Version, Zone: req.Zone, Replace: req.Replace,
		Levels: control.Levels{Min: uint64(req.Min), Max: uint64(req.Level)},
	}})
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(req.CSR, r.Node, req.Name, time.Now())
	if err != nil {
		return nil, err
	}
	reply := &access.JoinReply{Node: r.Node, Cluster: n.id.Cluster(), Cert: cert, CA: ca.CertPEM(), Level: int(n.ctl.state().Level())}
	for _, p := range st.Nodes {
		if !p.Removed && len(reply.Peers) < 32 {
			reply.Peers = append(reply.Peers, access.JoinPeer{Node: p.ID, Name: p.Name, Address: p.Address})
		}
	}
	return reply, nil
}

func checkToken(st *control.State, req *access.JoinRequest) error {
	t, ok := st.Token(req.Token.String())
	if ok {
		var hash access.SecretHash
		ok = decodeHex(t.SecretHash, hash[:]) && hash.Matches(req.Token, req.Secret)
	}
	if !ok {
		return &api.Error{Code: api.CodeDenied, Op: "join", Subject: "token " + req.Token.String(),
			Why: "the cluster does not know this token", Hint: "make a new one with: lockstep token create"}
	}
	return nil
}

func newKey() (key ed25519.PrivateKey, csr []byte, err error) {
	if key, err = access.NewKey(rand.Reader); err != nil {
		return nil, nil, err
	}
	csr, err = access.NewCSR(key)
	return key, csr, err
}

// writeJSON replaces a small file durably.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readJSON leaves v alone if there is no such file.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
