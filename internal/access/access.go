// Package access says who may talk to whom: the cluster's own certificate authority, the identity that a node
// keeps on disk, the tokens with which a server joins, and the TLS configurations that follow from them.
//
// Between nodes there is TLS 1.3 with certificates on both sides and nothing else. A node's certificate carries
// the URI lockstep://CLUSTER/node/ID; peers believe that URI (and no host name) once the chain leads to their
// cluster's CA. A server that joins has no certificate yet: it pins the CA by the fingerprint in its token, and
// is let in for the join service alone.
//
// The package is not about who may do what inside the cluster, and it opens no sockets: it makes
// configurations and speaks the join messages over whatever reader and writer it is given. Clock and randomness
// are handed in. It starts no goroutine.
package access

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// The kinds of failure. Each error of this package that a caller may want to tell apart wraps one of them; the
// text around it names the subject and the way out.
var (
	ErrOtherCluster  = errors.New("belongs to another cluster")
	ErrOtherNode     = errors.New("belongs to another node")
	ErrNotOfCA       = errors.New("not signed by this cluster's CA")
	ErrNotYetValid   = errors.New("certificate not yet valid")
	ErrNoCertificate = errors.New("no node certificate")
	ErrNewerLevel    = errors.New("written by a newer version")
	ErrNoIdentity    = errors.New("no node identity")
	ErrExists        = errors.New("node identity exists already")
	ErrPermissions   = errors.New("wrong permissions")
	ErrDamaged       = errors.New("node identity damaged")
	ErrToken         = errors.New("not a usable join token")
	ErrTokenExpired  = errors.New("join token expired")
	ErrMessage       = errors.New("malformed join message")
)

// ClusterID identifies a cluster for good; it is minted with its CA.
type ClusterID [16]byte

// String is 32 hex digits.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// MarshalText makes the id a string in JSON.
func (c ClusterID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (c *ClusterID) UnmarshalText(text []byte) error {
	id, err := ParseClusterID(string(text))
	if err != nil {
		return err
	}
	*c = id
	return nil
}

// ParseClusterID is the inverse of String; it takes lower-case digits only.
func ParseClusterID(s string) (ClusterID, error) {
	var id ClusterID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || strings.ToLower(s) != s {
		return id, fmt.Errorf("cluster id %q: want %d lower-case hex digits", s, 2*len(id))
	}
	copy(id[:], b)
	return id, nil
}

// Names of nodes become parts of file names (conflict copies), command arguments and log lines.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckName says why name cannot name a node, or nil.
func CheckName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("node name %q: want 1 to 63 of letters, digits, dot, dash and underscore, a letter or digit first", name)
	}
	return nil
}

const uriScheme = "lockstep"

func clusterURI(cluster ClusterID) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: cluster.String()}
}

// NodeURI is the name that a node's certificate carries.
func NodeURI(cluster ClusterID, node uint64) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: cluster.String(), Path: fmt.Sprintf("/node/%016x", node)}
}

// parseURI reads a NodeURI; the URI of a CA is a cluster without a node (0).
func parseURI(u *url.URL) (cluster ClusterID, node uint64, err error) {
	if cluster, err = ParseClusterID(u.Host); err != nil || u.Scheme != uriScheme {
		return cluster, 0, fmt.Errorf("certificate name %q is none of this software", u)
	}
	if u.Path == "" && u.String() == clusterURI(cluster).String() {
		return cluster, 0, nil
	}
	id, _ := strings.CutPrefix(u.Path, "/node/")
	node, err = strconv.ParseUint(id, 16, 64)
	if err != nil || node == 0 || u.String() != NodeURI(cluster, node).String() {
		return cluster, 0, fmt.Errorf("certificate name %q names no node", u)
	}
	return cluster, node, nil
}
