package access

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func clockAt(t time.Time) func() time.Time { return func() time.Time { return t } }

func seeded(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// cluster is an authority with the means to make nodes.
type cluster struct {
	t    *testing.T
	ca   *CA
	rand io.Reader
}

func newCluster(t *testing.T, seed byte) *cluster {
	t.Helper()
	r := seeded(seed)
	ca, err := NewCA(ClusterID{seed, 0xff}, day0, r)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t, ca, r}
}

func (c *cluster) node(id uint64, name string, now func() time.Time) *Identity {
	c.t.Helper()
	key, err := NewKey(c.rand)
	if err != nil {
		c.t.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := c.ca.Sign(csr, id, name, day0)
	if err != nil {
		c.t.Fatal(err)
	}
	ident, err := NewIdentity(key, cert, c.ca.CertPEM(), now)
	if err != nil {
		c.t.Fatal(err)
	}
	return ident
}

func TestCARoundTrip(t *testing.T) {
	c := newCluster(t, 1)
	key, err := c.ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(c.ca.CertPEM(), key, seeded(9))
	if err != nil {
		t.Fatal(err)
	}
	if again.Fingerprint() != c.ca.Fingerprint() || again.Cluster() != c.ca.Cluster() {
		t.Fatal("another CA came back")
	}
	id := c.node(7, "n7", clockAt(day0))
	for what, cert := range map[string]*x509.Certificate{"CA": c.ca.cert, "node": id.cert} {
		if cert.NotAfter.Year() != 9999 || cert.NotBefore.After(day0) {
			t.Errorf("%s: valid from %v to %v", what, cert.NotBefore, cert.NotAfter)
		}
	}
	otherKey, err := newCluster(t, 2).ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(c.ca.CertPEM(), otherKey, seeded(9)); err == nil {
		t.Error("a key of another CA was taken")
	}
	if _, err := LoadCA(id.certPEM(), key, seeded(9)); err == nil {
		t.Error("a node's certificate was taken for a CA")
	}
}

func (id *Identity) certPEM() []byte { return encodePEM(pemCert, id.cert.Raw) }

func TestSameRandomnessSameCA(t *testing.T) {
	first, second := newCluster(t, 1), newCluster(t, 1)
	if first.ca.Fingerprint() != second.ca.Fingerprint() {
		t.Error("the CA depends on something besides rand")
	}
}

func TestSignRefuses(t *testing.T) {
	c := newCluster(t, 1)
	key, _ := NewKey(c.rand)
	csr, _ := NewCSR(key)
	forged := bytes.Clone(csr)
	forged[len(forged)-1] ^= 1
	for _, tt := range []struct {
		what string
		csr  []byte
		node uint64
		name string
		now  time.Time
	}{
		{"node 0", csr, 0, "n", day0},
		{"bad name", csr, 1, "a/b", day0},
		{"forged request", forged, 1, "n", day0},
		{"no request", nil, 1, "n", day0},
	} {
		if _, err := c.ca.Sign(tt.csr, tt.node, tt.name, tt.now); err == nil {
			t.Errorf("%s: signed", tt.what)
		}
	}
}

func TestURIs(t *testing.T) {
	for _, bad := range []string{
		"", "00/node/1", "lockstep://" + strings.Repeat("0", 32) + "/node/0000000000000000",
		"lockstep://" + strings.Repeat("0", 32) + "/node/1",
		"lockstep://" + strings.Repeat("A", 32) + "/node/0000000000000001",
		"https://" + strings.Repeat("0", 32) + "/node/0000000000000001",
		"lockstep://" + strings.Repeat("0", 32) + "/node/0000000000000001?x=1",
		"lockstep://u@" + strings.Repeat("0", 32) + "/node/0000000000000001",
	} {
		u := NodeURI(ClusterID{}, 1)
		u, err := u.Parse(bad)
		if err != nil || bad == "" {
			continue
		}
		if _, _, err := parseURI(u); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	cl, node, err := parseURI(NodeURI(ClusterID{1, 2}, 1<<63))
	if err != nil || cl != (ClusterID{1, 2}) || node != 1<<63 {
		t.Errorf("got %v %x %v", cl, node, err)
	}
}

func TestIdentityOnDisk(t *testing.T) {
	c := newCluster(t, 1)
	id := c.node(0xfedcba9876543210, "web-1", clockAt(day0))
	data := t.TempDir()
	if _, err := Load(data, clockAt(day0)); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("empty directory: %v", err)
	}
	// What an interrupted attempt left does no harm.
	if err := os.MkdirAll(filepath.Join(data, dirNew, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(data, clockAt(day0)); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("half an identity: %v", err)
	}
	if err := Create(data, id); err != nil {
		t.Fatal(err)
	}
	if err := Create(data, id); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v", err)
	}
	got, err := Load(data, clockAt(day0))
	if err != nil {
		t.Fatal(err)
	}
	if got.Node() != id.Node() || got.Name() != "web-1" || got.Cluster() != id.Cluster() || got.Level() != Level ||
		!got.key.Equal(id.key) || got.CAFingerprint() != c.ca.Fingerprint() || !bytes.Equal(got.CAPEM(), c.ca.CertPEM()) {
		t.Errorf("another identity came back: %+v", got)
	}
	if err := got.CheckName("web-2"); !errors.Is(err, ErrOtherNode) {
		t.Errorf("other name: %v", err)
	}
	if err := got.CheckName("web-1"); err != nil {
		t.Error(err)
	}
	st, err := os.Stat(filepath.Join(data, dirIdentity, fileKey))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v %v", st.Mode(), err)
	}
}

func TestIdentityErrors(t *testing.T) {
	c := newCluster(t, 1)
	sibling := c.node(2, "n2", clockAt(day0))
	stranger := newCluster(t, 2).node(1, "n1", clockAt(day0))
	siblingKey, _ := keyPEM(sibling.key)
	twin, err := NewCA(c.ca.Cluster(), day0, seeded(77)) // same cluster id, another key
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data []byte) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), data, 0o600) }
	}
	edit := func(from, to string) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, fileNode))
			if err != nil || !bytes.Contains(b, []byte(from)) {
				return errors.Join(err, errors.New("nothing to edit"))
			}
			return put(fileNode, bytes.Replace(b, []byte(from), []byte(to), 1))(dir)
		}
	}
	for _, tt := range []struct {
		what   string
		break_ func(dir string) error
		want   error
		says   string
	}{
		{"missing key", func(dir string) error { return os.Remove(filepath.Join(dir, fileKey)) }, ErrDamaged, "key.pem is missing"},
		{"missing node.json", func(dir string) error { return os.Remove(filepath.Join(dir, fileNode)) }, ErrDamaged, "node.json is missing"},
		{"key for all to read", func(dir string) error { return os.Chmod(filepath.Join(dir, fileKey), 0o644) }, ErrPermissions, "chmod 600"},
		{"garbage key", put(fileKey, []byte("x")), ErrDamaged, "key.pem"},
		{"garbage cert", put(fileCert, []byte("x")), ErrDamaged, "node certificate"},
		{"garbage json", put(fileNode, []byte("{")), ErrDamaged, "node.json"},
		{"newer level", edit(`"level": 1`, `"level": 2, "more": {}`), ErrNewerLevel, "cluster level 2"},
		{"level 0", edit(`"level": 1`, `"level": 0`), ErrDamaged, "level 0"},
		{"other node's facts", edit("0000000000000001", "0000000000000003"), ErrOtherNode, "0000000000000003"},
		{"other name", edit(`"n1"`, `"n9"`), ErrOtherNode, "n9"},
		{"other node's key", put(fileKey, siblingKey), ErrOtherNode, "key"},
		{"CA of another cluster", put(fileCA, stranger.CAPEM()), ErrNotOfCA, stranger.Cluster().String()},
		{"forged CA of this cluster", put(fileCA, twin.CertPEM()), ErrNotOfCA, "n1"},
		{"CA that is none", put(fileCA, sibling.certPEM()), nil, "not a cluster's CA"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			data := t.TempDir()
			if err := Create(data, c.node(1, "n1", clockAt(day0))); err != nil {
				t.Fatal(err)
			}
			if err := tt.break_(filepath.Join(data, dirIdentity)); err != nil {
				t.Fatal(err)
			}
			_, err := Load(data, clockAt(day0))
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}
}

// shake makes one TLS connection over a pipe and returns both sides' errors and what the server saw.
func shake(server, client *tls.Config) (seen tls.ConnectionState, serverErr, clientErr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	s := tls.Server(a, server)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	b.Close()
	serverErr = <-done
	return s.ConnectionState(), serverErr, clientErr
}

func TestTLS(t *testing.T) {
	now := clockAt(day0)
	c := newCluster(t, 1)
	n1, n2 := c.node(1, "n1", now), c.node(2, "n2", now)
	foreign := newCluster(t, 2).node(2, "n2", now)
	behind := c.node(3, "n3", clockAt(day0.AddDate(0, 0, -3)))
	later := c.node(4, "n4", clockAt(day0.AddDate(80, 0, 0)))
	impostorCA, _ := NewCA(c.ca.Cluster(), day0, seeded(9))
	impostor := (&cluster{t, impostorCA, seeded(10)}).node(2, "n2", now)
	anonymous := baseConfig(now)
	anonymous.InsecureSkipVerify = true
	trusting := func(id *Identity) *tls.Config { // shows its certificate to anyone
		cfg := id.Client(0)
		cfg.VerifyConnection = nil
		return cfg
	}
	tls12 := n2.Client(1)
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tt := range []struct {
		what           string
		server, client *tls.Config
		wantServer     error // nil: must succeed, unless wantClient is set
		wantClient     error
		says           []string
	}{
		{"two nodes", n1.Server(), n2.Client(1), nil, nil, nil},
		{"two nodes, join allowed", n1.JoinServer(), n2.Client(1), nil, nil, nil},
		{"another node answers", n1.Server(), n2.Client(3), nil, ErrOtherNode, []string{"0000000000000001", "0000000000000003"}},
		{"server of another cluster", foreign.Server(), n1.Client(2), nil, ErrOtherCluster, []string{c.ca.Cluster().String(), foreign.Cluster().String()}},
		{"client of another cluster", n1.Server(), trusting(foreign), ErrOtherCluster, nil, []string{c.ca.Cluster().String(), foreign.Cluster().String()}},
		{"client of another cluster, join allowed", n1.JoinServer(), trusting(foreign), ErrOtherCluster, nil, nil},
		{"forged client", n1.Server(), trusting(impostor), ErrNotOfCA, nil, nil},
		{"forged client, join allowed", n1.JoinServer(), trusting(impostor), ErrNotOfCA, nil, nil},
		{"forged server", impostor.Server(), n1.Client(2), nil, ErrNotOfCA, nil},
		{"not yet valid", n1.Server(), behind.Client(1), nil, ErrNotYetValid, []string{"n1", day0.AddDate(0, 0, -3).Format(time.DateOnly)}},
		{"client not yet valid", behind.Server(), trusting(n1), ErrNotYetValid, nil, nil},
		{"80 years later", later.Server(), n1.Client(4), nil, nil, nil},
		{"nobody", n1.Server(), anonymous, errAny, nil, nil},
		{"TLS 1.2", n1.Server(), tls12, errAny, nil, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			_, serverErr, clientErr := shake(tt.server, tt.client)
			switch {
			case tt.wantServer == nil && tt.wantClient == nil:
				if serverErr != nil || clientErr != nil {
					t.Fatalf("server %v, client %v", serverErr, clientErr)
				}
			case tt.wantServer == errAny:
				if serverErr == nil || clientErr == nil {
					t.Fatalf("server %v, client %v", serverErr, clientErr)
				}
			case tt.wantServer != nil && !errors.Is(serverErr, tt.wantServer):
				t.Fatalf("server says %v, want %v", serverErr, tt.wantServer)
			case tt.wantClient != nil && !errors.Is(clientErr, tt.wantClient):
				t.Fatalf("client says %v, want %v", clientErr, tt.wantClient)
			}
			for _, s := range tt.says {
				if all := errors.Join(serverErr, clientErr).Error(); !strings.Contains(all, s) {
					t.Errorf("%q does not name %q", all, s)
				}
			}
		})
	}
	if seen, _, _ := shake(n1.JoinServer(), n2.Client(1)); true {
		if node, ok := PeerNode(seen); !ok || node != 2 {
			t.Errorf("PeerNode = %x, %v", node, ok)
		}
	}
	seen, serverErr, clientErr := shake(n1.JoinServer(), anonymous)
	if node, ok := PeerNode(seen); serverErr != nil || clientErr != nil || ok || node != 0 {
		t.Errorf("anonymous at a join server: %v %v %x %v", serverErr, clientErr, node, ok)
	}
}

var errAny = errors.New("any error")

func TestJoinTLS(t *testing.T) {
	now := clockAt(day0)
	c, other := newCluster(t, 1), newCluster(t, 2)
	twinCA, _ := NewCA(c.ca.Cluster(), day0, seeded(9))
	twin := (&cluster{t, twinCA, seeded(10)}).node(1, "n1", now)
	tok, err := NewToken(c.ca.Cluster(), c.ca.Fingerprint(), []string{"127.0.0.1:7420"}, time.Hour, day0, seeded(3))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(c.node(1, "n1", now).JoinServer(), JoinTLS(tok, now)); err != nil {
		t.Error(err)
	}
	if _, _, err := shake(other.node(1, "n1", now).JoinServer(), JoinTLS(tok, now)); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("other cluster: %v", err)
	}
	if _, _, err := shake(twin.JoinServer(), JoinTLS(tok, now)); !errors.Is(err, ErrNotOfCA) {
		t.Errorf("impostor: %v", err)
	}
	// An impostor that shows the true CA's certificate along with one that it made itself.
	cfg := twin.JoinServer()
	cfg.Certificates[0].Certificate[1] = c.ca.cert.Raw
	if _, _, err := shake(cfg, JoinTLS(tok, now)); !errors.Is(err, ErrNotOfCA) {
		t.Errorf("impostor with borrowed CA: %v", err)
	}
}

func TestToken(t *testing.T) {
	addrs := []string{"10.0.0.1:7420", "[fe80::1]:7420", "n3.example:1"}
	tok, err := NewToken(ClusterID{1}, Fingerprint{2}, addrs, time.Hour, day0, seeded(3))
	if err != nil {
		t.Fatal(err)
	}
	word := tok.Encode()
	if strings.ContainsAny(word, " \n\t") || !strings.HasPrefix(word, "lsj1.") {
		t.Fatalf("not a word: %q", word)
	}
	got, err := ParseToken(" " + word + "\n")
	if err != nil || got.Encode() != word || got.Secret != tok.Secret || !got.Expires.Equal(day0.Add(time.Hour)) {
		t.Fatalf("%+v, %v", got, err)
	}
	if h := tok.Secret.Hash(tok.ID); !h.Matches(tok.ID, tok.Secret) || h.Matches(TokenID{}, tok.Secret) || h.Matches(tok.ID, Secret{}) {
		t.Error("secret hash")
	}
	if strings.Contains(tok.String(), word) || strings.Contains(tok.LogValue().String(), word[60:80]) || tok.Secret.String() != "(secret)" {
		t.Error("the secret shows")
	}
	if tok.Expired(day0) != nil || !errors.Is(tok.Expired(day0.Add(time.Hour)), ErrTokenExpired) {
		t.Error("expiry")
	}
	for n := range len(word) {
		if _, err := ParseToken(word[:n]); !errors.Is(err, ErrToken) {
			t.Fatalf("cut to %d: %v", n, err)
		}
		for _, b := range []byte("Aa0_.\n") {
			if b == word[n] {
				continue
			}
			if _, err := ParseToken(word[:n] + string(b) + word[n+1:]); !errors.Is(err, ErrToken) {
				t.Fatalf("character %d altered to %q: %v", n, b, err)
			}
		}
	}
	if _, err := ParseToken(word[:80]); !strings.Contains(err.Error(), "cut short") {
		t.Errorf("cut: %v", err)
	}
	for _, bad := range [][]string{nil, {"a:1", "b:1", "c:1", "d:1", "e:1", "f:1"}, {"nohost"}, {":7420"}, {"h:"}, {strings.Repeat("h", 255) + ":1"}} {
		if _, err := NewToken(ClusterID{}, Fingerprint{}, bad, time.Hour, day0, seeded(3)); err == nil {
			t.Errorf("addresses %q taken", bad)
		}
	}
	if _, err := NewToken(ClusterID{}, Fingerprint{}, addrs, 0, day0, seeded(3)); err == nil {
		t.Error("ttl 0 taken")
	}
}

func FuzzParseToken(f *testing.F) {
	tok, _ := NewToken(ClusterID{1}, Fingerprint{2}, []string{"h:1", "i:2"}, time.Hour, day0, seeded(3))
	f.Add(tok.Encode())
	f.Add("lsj1.")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatal(err)
			}
			return
		}
		if got := tok.Encode(); got != strings.TrimSpace(s) {
			t.Fatalf("%q came back as %q", s, got)
		}
	})
}

// FuzzDecodeToken goes past the checksum.
func FuzzDecodeToken(f *testing.F) {
	f.Add(make([]byte, 97))
	f.Add(append(make([]byte, 96), 1, 3, 'h', ':', '1'))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := decodeToken(b)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.Encode()); err != nil || again.Encode() != tok.Encode() {
			t.Fatalf("%x: %v", b, err)
		}
	})
}

func TestJoinExchange(t *testing.T) {
	now := clockAt(day0)
	c, other := newCluster(t, 1), newCluster(t, 2)
	tok, _ := NewToken(c.ca.Cluster(), c.ca.Fingerprint(), []string{"h:1"}, time.Hour, day0, seeded(3))
	key, _ := NewKey(seeded(4))
	csr, _ := NewCSR(key)
	var wire bytes.Buffer
	req := JoinRequest{tok.ID, tok.Secret, "n2", "10.0.0.2:7420", csr, "v1", Level, 1, "", true}
	if _, err := req.WriteTo(&wire); err != nil {
		t.Fatal(err)
	}
	got, err := ReadJoinRequest(&wire)
	if err != nil || got.Secret != tok.Secret || got.Token != tok.ID || !got.Replace || got.Name != "n2" {
		t.Fatalf("%+v %v", got, err)
	}
	sign := func(c *cluster, key ed25519.PrivateKey, node uint64, name string) JoinReply {
		csr, _ := NewCSR(key)
		cert, err := c.ca.Sign(csr, node, name, day0)
		if err != nil {
			t.Fatal(err)
		}
		return JoinReply{Node: node, Cluster: c.ca.Cluster(), Cert: cert, CA: c.ca.CertPEM(), Peers: []JoinPeer{{1 << 63, "n1", "h:1"}}}
	}
	good := sign(c, key, 2, "n2")
	if _, err := good.WriteTo(&wire); err != nil {
		t.Fatal(err)
	}
	reply, err := ReadJoinReply(&wire)
	if err != nil || reply.Peers[0].Node != 1<<63 {
		t.Fatalf("%+v %v", reply, err)
	}
	id, err := reply.Identity(tok, key, "n2", now)
	if err != nil || id.Node() != 2 {
		t.Fatalf("%+v %v", id, err)
	}
	otherKey, _ := NewKey(seeded(5))
	lying := sign(c, key, 2, "n2")
	lying.Node = 3
	twinCA, _ := NewCA(c.ca.Cluster(), day0, seeded(9))
	for what, r := range map[string]JoinReply{
		"other cluster": sign(other, key, 2, "n2"), "other key": sign(c, otherKey, 2, "n2"),
		"other name": sign(c, key, 2, "n9"), "other node": lying,
		"impostor": sign(&cluster{t, twinCA, seeded(1)}, key, 2, "n2"),
	} {
		if _, err := r.Identity(tok, key, "n2", now); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

func FuzzReadJoin(f *testing.F) {
	var seed bytes.Buffer
	req := JoinRequest{Name: "n", Address: "h:1", CSR: []byte{1}, Level: 1}
	req.WriteTo(&seed)
	f.Add(seed.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ReadJoinRequest(bytes.NewReader(b)); err == nil {
			var w bytes.Buffer
			if _, err := m.WriteTo(&w); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadJoinRequest(&w); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = ReadJoinReply(bytes.NewReader(b))
	})
}

func TestJoinTooBig(t *testing.T) {
	// Nothing follows the length: had it been believed, the error would be another one.
	if _, err := ReadJoinRequest(bytes.NewReader([]byte{0, 1, 0, 1})); !errors.Is(err, ErrMessage) {
		t.Error(err)
	}
	big := JoinReply{Cert: make([]byte, MaxJoinMessage)}
	if _, err := big.WriteTo(io.Discard); !errors.Is(err, ErrMessage) {
		t.Error(err)
	}
}

func TestClusterID(t *testing.T) {
	id := ClusterID{0xab, 1}
	got, err := ParseClusterID(id.String())
	if err != nil || got != id {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "ab", strings.ToUpper(id.String()), hex.EncodeToString(make([]byte, 17))} {
		if _, err := ParseClusterID(bad); err == nil {
			t.Errorf("%q taken", bad)
		}
	}
}
