package access

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"
)

// backdate lets a certificate be used at once on servers whose clocks are behind the issuer's.
const backdate = 24 * time.Hour

// never is how a certificate says that it does not expire (RFC 5280, 4.1.2.5). Who belongs to a cluster is what its
// control group says, at any moment: a node that was removed is refused whatever its certificate says. A date would only
// end clusters that nobody has thought of for long enough.
func never() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

// Fingerprint is the SHA-256 of a CA certificate's DER form.
type Fingerprint [sha256.Size]byte

// CA is a cluster's certificate authority. It is immutable and may be used concurrently.
type CA struct {
	cluster ClusterID
	cert    *x509.Certificate
	key     ed25519.PrivateKey
	rand    io.Reader
}

// NewCA makes the authority of a new cluster, which does not expire. All its secrets, and the serial numbers of what
// it signs, come from rand.
func NewCA(cluster ClusterID, now time.Time, rand io.Reader) (*CA, error) {
	key, err := NewKey(rand)
	if err != nil {
		return nil, fmt.Errorf("new CA of cluster %s: %w", cluster, err)
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, fmt.Errorf("new CA of cluster %s: %w", cluster, err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Lockstep CA " + cluster.String()},
		URIs:                  []*url.URL{clusterURI(cluster)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              never(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("new CA of cluster %s: %w", cluster, err)
	}
	return newCA(der, key, rand)
}

// LoadCA reads what CertPEM and KeyPEM wrote. rand serves the serial numbers of what it signs.
func LoadCA(certPEM, keyPEM []byte, rand io.Reader) (*CA, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return newCA(cert.Raw, key, rand)
}

func newCA(der []byte, key ed25519.PrivateKey, rand io.Reader) (*CA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	cluster, err := caCluster(cert)
	if err != nil {
		return nil, err
	}
	if !key.Public().(ed25519.PublicKey).Equal(cert.PublicKey) {
		return nil, fmt.Errorf("CA of cluster %s: the key is not the certificate's", cluster)
	}
	return &CA{cluster: cluster, cert: cert, key: key, rand: rand}, nil
}

// Cluster is the id of the cluster that the authority speaks for.
func (ca *CA) Cluster() ClusterID { return ca.cluster }

// CertPEM is the public certificate.
func (ca *CA) CertPEM() []byte { return encodePEM(pemCert, ca.cert.Raw) }

// KeyPEM is the authority's secret key (PKCS #8).
func (ca *CA) KeyPEM() ([]byte, error) { return keyPEM(ca.key) }

// Fingerprint identifies the certificate.
func (ca *CA) Fingerprint() Fingerprint { return sha256.Sum256(ca.cert.Raw) }

// Sign makes a node's certificate for the key of a certificate signing request (DER, see NewCSR), which proves
// that the asker holds that key; everything else in the request is ignored. node is > 0 and was never given
// to another server. The certificate does not expire.
func (ca *CA) Sign(csr []byte, node uint64, name string, now time.Time) (certPEM []byte, err error) {
	pub, err := requestedKey(csr)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", name, err)
	}
	return ca.sign(pub, node, name, now)
}

// CheckCSR tells whether Sign would take a certificate signing request.
func CheckCSR(csr []byte) error {
	_, err := requestedKey(csr)
	return err
}

// requestedKey is the key of a certificate signing request, which the asker has proved to hold.
func requestedKey(csr []byte) (ed25519.PublicKey, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the asker does not hold the key: %w", err)
	}
	pub, ok := req.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("want an Ed25519 key, not %T", req.PublicKey)
	}
	return pub, nil
}

func (ca *CA) sign(pub ed25519.PublicKey, node uint64, name string, now time.Time) ([]byte, error) {
	if err := CheckName(name); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	if node == 0 {
		return nil, fmt.Errorf("sign certificate of node %s: node id 0", name)
	}
	serial, err := newSerial(ca.rand)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", name, err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		URIs:                  []*url.URL{NodeURI(ca.cluster, node)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              never(),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(ca.rand, template, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", name, err)
	}
	return encodePEM(pemCert, der), nil
}

// NewKey makes a node's secret key; it never leaves the node.
func NewKey(rand io.Reader) (ed25519.PrivateKey, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, fmt.Errorf("new key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// NewCSR makes the certificate signing request (DER) for key that CA.Sign takes.
func NewCSR(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{SignatureAlgorithm: x509.PureEd25519}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return der, nil
}

func newSerial(rand io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and of one length
	return new(big.Int).SetBytes(b[:]), nil
}

// caCluster reads the cluster from a CA's certificate.
func caCluster(cert *x509.Certificate) (ClusterID, error) {
	if !cert.IsCA || len(cert.URIs) != 1 {
		return ClusterID{}, fmt.Errorf("certificate %q is not a cluster's CA", cert.Subject.CommonName)
	}
	cluster, node, err := parseURI(cert.URIs[0])
	if err != nil {
		return ClusterID{}, err
	}
	if node != 0 {
		return ClusterID{}, fmt.Errorf("certificate %q is not a cluster's CA", cert.Subject.CommonName)
	}
	return cluster, nil
}

// certNode reads cluster and node from a node's certificate.
func certNode(cert *x509.Certificate) (ClusterID, uint64, error) {
	if len(cert.URIs) != 1 {
		return ClusterID{}, 0, fmt.Errorf("certificate %q names no node: %w", cert.Subject.CommonName, ErrNoCertificate)
	}
	cluster, node, err := parseURI(cert.URIs[0])
	if err != nil {
		return cluster, 0, fmt.Errorf("%w: %w", err, ErrNoCertificate)
	}
	if node == 0 {
		return cluster, 0, fmt.Errorf("certificate %q names no node: %w", cert.Subject.CommonName, ErrNoCertificate)
	}
	return cluster, node, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// decodePEM takes exactly one block of the kind.
func decodePEM(kind string, text []byte) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("want one PEM block of type %q", kind)
	}
	return block.Bytes, nil
}

func parseCert(text []byte) (*x509.Certificate, error) {
	der, err := decodePEM(pemCert, text)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func parseKey(text []byte) (ed25519.PrivateKey, error) {
	der, err := decodePEM(pemKey, text)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("want an Ed25519 key, not %T", key)
	}
	return ed, nil
}

func keyPEM(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encodePEM(pemKey, der), nil
}
