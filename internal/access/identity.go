package access

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Level is the newest cluster level whose data directories this program may use.
const Level = api.Level

// The files below DATA/identity.
const (
	dirIdentity = "identity"
	dirNew      = "identity.new"
	fileKey     = "key.pem"
	fileCert    = "cert.pem"
	fileCA      = "ca.pem"
	fileNode    = "node.json"
)

// Identity is what makes a server this node of this cluster. It is immutable and may be used concurrently.
type Identity struct {
	cluster ClusterID
	node    uint64
	name    string
	level   int
	key     ed25519.PrivateKey
	cert    *x509.Certificate
	ca      *x509.Certificate
	now     func() time.Time
}

// facts is node.json.
type facts struct {
	Level   int       `json:"level"`
	Cluster ClusterID `json:"cluster"`
	Node    string    `json:"node"` // hex, for the reader's eye: a JSON number would lose digits
	Name    string    `json:"name"`
}

// NewIdentity puts together what a node has after it made its key and a CA signed it. It checks that the
// parts belong together; now is the clock against which peers' certificates are checked.
func NewIdentity(key ed25519.PrivateKey, certPEM, caPEM []byte, now func() time.Time) (*Identity, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w: %w", ErrDamaged, err)
	}
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w: %w", ErrDamaged, err)
	}
	id := &Identity{name: cert.Subject.CommonName, level: Level, key: key, cert: cert, ca: ca, now: now}
	if id.cluster, id.node, err = certNode(cert); err != nil {
		return nil, err
	}
	caOf, err := caCluster(ca)
	if err != nil {
		return nil, err
	}
	if caOf != id.cluster {
		return nil, fmt.Errorf("the node's certificate is of cluster %s, the CA's of cluster %s: %w", id.cluster, caOf, ErrNotOfCA)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("certificate of node %s: %w: %w", id.name, ErrNotOfCA, err)
	}
	if !key.Public().(ed25519.PublicKey).Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the key is not the one of node %s's certificate: %w", id.name, ErrOtherNode)
	}
	return id, nil
}

// Cluster is the id of the node's cluster.
func (id *Identity) Cluster() ClusterID { return id.cluster }

// Node is the node's id; ids are > 0 and never reused.
func (id *Identity) Node() uint64 { return id.node }

// Name is the node's name.
func (id *Identity) Name() string { return id.name }

// Level is the highest cluster level that the data directory was used at, when it was loaded or made. What is written
// there may be of that level, so no program that does not know it may touch it.
func (id *Identity) Level() int { return id.level }

// CAFingerprint identifies the cluster's CA, as tokens carry it.
func (id *Identity) CAFingerprint() Fingerprint { return sha256.Sum256(id.ca.Raw) }

// CAPEM is the certificate of the cluster's CA.
func (id *Identity) CAPEM() []byte { return encodePEM(pemCert, id.ca.Raw) }

// CheckName returns an error if the node is asked to run under a name that is not its own.
func (id *Identity) CheckName(name string) error {
	if name != id.name {
		return fmt.Errorf("this data directory is that of node %s, not %s: %w; use another --data, or leave --name out",
			id.name, name, ErrOtherNode)
	}
	return nil
}

// Create writes id below the data directory, which must exist. It appears as a whole or not at all, and is
// durable when Create returns. A directory that has an identity is left alone: ErrExists.
func Create(data string, id *Identity) error {
	final, tmp := filepath.Join(data, dirIdentity), filepath.Join(data, dirNew)
	if err := create(data, final, tmp, id); err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	return nil
}

func create(data, final, tmp string, id *Identity) error {
	if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", final, ErrExists)
	}
	if err := os.RemoveAll(tmp); err != nil { // what an interrupted attempt left
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	key, err := keyPEM(id.key)
	if err != nil {
		return err
	}
	node, err := json.MarshalIndent(facts{id.level, id.cluster, fmt.Sprintf("%016x", id.node), id.name}, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{fileKey, key, 0o600},
		{fileCert, encodePEM(pemCert, id.cert.Raw), 0o644},
		{fileCA, encodePEM(pemCert, id.ca.Raw), 0o644},
		{fileNode, append(node, '\n'), 0o644},
	} {
		if err := writeSynced(filepath.Join(tmp, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncDir(data)
}

// Mark records, durably, that the data directory of id is used at a cluster level from now on.
func Mark(data string, id *Identity, level int) error {
	dir := filepath.Join(data, dirIdentity)
	node, err := json.MarshalIndent(facts{level, id.cluster, fmt.Sprintf("%016x", id.node), id.name}, "", "  ")
	if err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	final := filepath.Join(dir, fileNode)
	next := final + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) { // what an interrupted attempt left
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	if err := writeSynced(next, append(node, '\n'), 0o644); err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	if err := os.Rename(next, final); err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	return syncDir(dir)
}

func writeSynced(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Present says whether data is a data directory of some node: whether there is an identity below it.
func Present(data string) bool {
	_, err := os.Lstat(filepath.Join(data, dirIdentity, fileNode))
	return err == nil
}

// Load reads the identity below a data directory. ErrNoIdentity means that there is none: the server has not
// joined a cluster yet. Every other error means that the directory must not be used.
func Load(data string, now func() time.Time) (*Identity, error) {
	dir := filepath.Join(data, dirIdentity)
	id, err := load(dir, now)
	if err != nil {
		return nil, fmt.Errorf("load node identity from %s: %w", dir, err)
	}
	return id, nil
}

func load(dir string, now func() time.Time) (*Identity, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoIdentity
	}
	// node.json first: a newer version may keep the other files in another way.
	want, err := loadFacts(filepath.Join(dir, fileNode))
	if err != nil {
		return nil, err
	}
	key, err := loadKey(filepath.Join(dir, fileKey))
	if err != nil {
		return nil, err
	}
	cert, err := readFile(filepath.Join(dir, fileCert))
	if err != nil {
		return nil, err
	}
	ca, err := readFile(filepath.Join(dir, fileCA))
	if err != nil {
		return nil, err
	}
	id, err := NewIdentity(key, cert, ca, now)
	if err != nil {
		return nil, err
	}
	id.level = want.Level
	if have := fmt.Sprintf("%016x", id.node); id.cluster != want.Cluster || have != want.Node || id.name != want.Name {
		return nil, fmt.Errorf("%s says node %s (%s) of cluster %s, the certificate node %s (%s) of cluster %s: %w",
			fileNode, want.Node, want.Name, want.Cluster, have, id.name, id.cluster, ErrOtherNode)
	}
	return id, nil
}

func loadFacts(path string) (facts, error) {
	var f facts
	b, err := readFile(path)
	if err != nil {
		return f, err
	}
	var head struct{ Level int }
	if err := json.Unmarshal(b, &head); err != nil {
		return f, fmt.Errorf("%s: %w: %w", fileNode, ErrDamaged, err)
	}
	if head.Level > Level {
		return f, fmt.Errorf("it was used at cluster level %d, this program knows levels up to %d: %w",
			head.Level, Level, ErrNewerLevel)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return f, fmt.Errorf("%s: %w: %w", fileNode, ErrDamaged, err)
	}
	if f.Level < 1 {
		return f, fmt.Errorf("%s: level %d: %w", fileNode, f.Level, ErrDamaged)
	}
	return f, nil
}

func loadKey(path string) (ed25519.PrivateKey, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so others can act as this node: %w; chmod 600 %s", fileKey, mode, ErrPermissions, path)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", fileKey, ErrDamaged, err)
	}
	return key, nil
}

func readFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is missing: %w; restore it, or empty the data directory and join again", filepath.Base(path), ErrDamaged)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: %w; run as the owner of the data directory", ErrPermissions, err)
	}
	return b, err
}
