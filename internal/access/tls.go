package access

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// protocol is what both sides name in ALPN, so that a stray HTTPS client is turned away by TLS itself.
const protocol = "lockstep/1"

// Server is for a listener that only nodes of this cluster may use: a connection without a valid node
// certificate fails in the handshake.
func (id *Identity) Server() *tls.Config {
	c := id.config()
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return id.verify(cs, 0, x509.ExtKeyUsageClientAuth)
	}
	return c
}

// JoinServer is like Server, but lets connections without a certificate in. The caller must offer them the
// join service and nothing else: PeerNode tells them apart.
func (id *Identity) JoinServer() *tls.Config {
	c := id.config()
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return id.verify(cs, 0, x509.ExtKeyUsageClientAuth)
	}
	return c
}

// Client is for a connection to one node: the handshake fails if any other answers.
func (id *Identity) Client(node uint64) *tls.Config {
	c := id.config()
	c.InsecureSkipVerify = true // host names mean nothing here: VerifyConnection checks chain, cluster and node
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return id.verify(cs, node, x509.ExtKeyUsageServerAuth)
	}
	return c
}

// JoinTLS is for a server that has a token and no certificate yet. It talks only to a node whose certificate
// was signed by the CA with the token's fingerprint.
func JoinTLS(t *Token, now func() time.Time) *tls.Config {
	c := baseConfig(now)
	c.InsecureSkipVerify = true // VerifyConnection checks the chain against the pinned CA
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		for _, cert := range cs.PeerCertificates {
			if sha256.Sum256(cert.Raw) == t.CA {
				return verifyPeer(cs, cert, t.Cluster, 0, x509.ExtKeyUsageServerAuth, c.Time())
			}
		}
		if cluster, _, err := certNode(cs.PeerCertificates[0]); err == nil && cluster != t.Cluster {
			return fmt.Errorf("the server that answered is of cluster %s, the token is for cluster %s: %w",
				cluster, t.Cluster, ErrOtherCluster)
		}
		return fmt.Errorf("the server that answered does not show the CA that the token pins: %w", ErrNotOfCA)
	}
	return c
}

// PeerNode is the node that a connection's verified certificate names; ok is false if the peer showed none.
// It is meaningful only on connections that were made with this package's configurations.
func PeerNode(cs tls.ConnectionState) (node uint64, ok bool) {
	if len(cs.PeerCertificates) == 0 {
		return 0, false
	}
	_, node, err := certNode(cs.PeerCertificates[0])
	return node, err == nil
}

func baseConfig(now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		Time:       now,
		// A handshake costs less than what could go wrong with tickets that outlive a certificate.
		SessionTicketsDisabled: true,
		// Full records from the first byte on: these are servers on a fast network, not browsers.
		DynamicRecordSizingDisabled: true,
	}
}

func (id *Identity) config() *tls.Config {
	c := baseConfig(id.now)
	// The CA goes along: who joins knows only its fingerprint.
	chain := tls.Certificate{Certificate: [][]byte{id.cert.Raw, id.ca.Raw}, PrivateKey: id.key, Leaf: id.cert}
	c.Certificates = []tls.Certificate{chain}
	return c
}

func (id *Identity) verify(cs tls.ConnectionState, node uint64, usage x509.ExtKeyUsage) error {
	return verifyPeer(cs, id.ca, id.cluster, node, usage, id.now())
}

// verifyPeer checks the peer's certificate against ca; node 0 means any. The cluster is looked at first so that
// the commonest mistake, a server of another cluster, gets the error that names it.
func verifyPeer(cs tls.ConnectionState, ca *x509.Certificate, cluster ClusterID, node uint64, usage x509.ExtKeyUsage, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("the peer showed no certificate: %w", ErrNoCertificate)
	}
	leaf := cs.PeerCertificates[0]
	gotCluster, gotNode, err := certNode(leaf)
	if err != nil {
		return err
	}
	if gotCluster != cluster {
		return fmt.Errorf("the peer's certificate is of cluster %s, this is cluster %s: %w", gotCluster, cluster, ErrOtherCluster)
	}
	if err := verifyChain(leaf, ca, usage, now); err != nil {
		return err
	}
	if node != 0 && gotNode != node {
		return fmt.Errorf("node %016x answered where node %016x was expected: %w", gotNode, node, ErrOtherNode)
	}
	return nil
}

func verifyChain(leaf, ca *x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("certificate %q is valid from %s on, and the clock says %s: %w", invalid.Cert.Subject.CommonName,
			invalid.Cert.NotBefore.Format(time.DateTime), now.UTC().Format(time.DateTime), ErrNotYetValid)
	}
	if err != nil {
		return fmt.Errorf("certificate %q: %w: %w", leaf.Subject.CommonName, ErrNotOfCA, err)
	}
	return nil
}
