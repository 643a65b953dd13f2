package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"
)

const (
	tokenPrefix  = "lsj1."
	maxToken     = 4096 // characters
	maxTokenAddr = 255  // bytes of one address
	// MaxTokenAddrs is how many addresses a token carries at most.
	MaxTokenAddrs = 5
)

// TokenID names a token in lists and in audit; it is no secret.
type TokenID [8]byte

// String is 16 hex digits.
func (t TokenID) String() string { return hex.EncodeToString(t[:]) }

// MarshalText makes the id a string in JSON.
func (t TokenID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (t *TokenID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(t) {
		return fmt.Errorf("token id %q: want %d hex digits", text, 2*len(t))
	}
	copy(t[:], b)
	return nil
}

// Secret is what a token's bearer knows.
type Secret [32]byte

// String keeps secrets out of logs.
func (Secret) String() string { return "(secret)" }

// MarshalText is the wire form in join messages.
func (s Secret) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, s[:]), nil
}

// UnmarshalText is the inverse of MarshalText.
func (s *Secret) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.AppendDecode(nil, text)
	if err != nil || len(b) != len(s) {
		return errors.New("malformed secret")
	}
	copy(s[:], b)
	return nil
}

// SecretHash is the form in which the cluster remembers a token's secret.
type SecretHash [sha256.Size]byte

// Hash is bound to the token's id. A plain hash is enough: the secret is 256 random bits, not a password.
func (s Secret) Hash(id TokenID) SecretHash {
	h := sha256.New()
	h.Write([]byte("lockstep join token\x00"))
	h.Write(id[:])
	h.Write(s[:])
	return SecretHash(h.Sum(nil))
}

// Matches compares in constant time.
func (h SecretHash) Matches(id TokenID, s Secret) bool {
	got := s.Hash(id)
	return subtle.ConstantTimeCompare(h[:], got[:]) == 1
}

// Token lets one or more servers join until it expires or is revoked.
type Token struct {
	ID      TokenID
	Cluster ClusterID
	CA      Fingerprint // whom the joining server believes
	Secret  Secret      // whom the cluster believes
	Expires time.Time   // whole seconds
	Addrs   []string    // host:port of nodes that can be asked, 1 to MaxTokenAddrs
}

// NewToken mints a token that is valid for ttl (at least a second) from now.
func NewToken(cluster ClusterID, ca Fingerprint, addrs []string, ttl time.Duration, now time.Time, rand io.Reader) (*Token, error) {
	if ttl < time.Second {
		return nil, fmt.Errorf("new token: ttl %v: want at least a second", ttl)
	}
	t := &Token{Cluster: cluster, CA: ca, Expires: now.Add(ttl).Truncate(time.Second).UTC(), Addrs: addrs}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("new token: %w", err)
	}
	if _, err := io.ReadFull(rand, t.ID[:]); err != nil {
		return nil, fmt.Errorf("new token: %w", err)
	}
	if _, err := io.ReadFull(rand, t.Secret[:]); err != nil {
		return nil, fmt.Errorf("new token: %w", err)
	}
	return t, nil
}

// String says which token it is, without the secret; Encode is the printable form.
func (t *Token) String() string { return "token " + t.ID.String() }

// LogValue keeps the secret out of logs.
func (t *Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Expired says whether the token's time is over, by the caller's clock. The cluster's own clock decides in the end.
func (t *Token) Expired(now time.Time) error {
	if now.Before(t.Expires) {
		return nil
	}
	return fmt.Errorf("%s expired on %s: %w; make a new one with: lockstep token create",
		t, t.Expires.Format(time.RFC3339), ErrTokenExpired)
}

// Encode is one printable word: prefix, base64url of the fields and of a checksum over all before it.
func (t *Token) Encode() string {
	b := make([]byte, 0, 256)
	b = append(b, t.CA[:]...)
	b = append(b, t.Cluster[:]...)
	b = append(b, t.ID[:]...)
	b = append(b, t.Secret[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, byte(len(t.Addrs)))
	for _, a := range t.Addrs {
		b = append(b, byte(len(a)))
		b = append(b, a...)
	}
	b = binary.BigEndian.AppendUint32(b, tokenSum(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func tokenSum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// ParseToken reads what Encode wrote; white space around it does not matter. It does not look at the clock.
func ParseToken(s string) (*Token, error) {
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > maxToken {
		return nil, fmt.Errorf("%w: it should be one word that starts with %s; see: lockstep token create", ErrToken, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	// The decoder skips line breaks: a token that was wrapped by a terminal is not the word that was printed.
	if err != nil || strings.ContainsAny(body, "\r\n") || len(b) < 4 ||
		tokenSum(b[:len(b)-4]) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: it was cut short or altered; copy the whole word", ErrToken)
	}
	t, err := decodeToken(b[:len(b)-4])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

func decodeToken(b []byte) (*Token, error) {
	t := &Token{}
	head := len(t.CA) + len(t.Cluster) + len(t.ID) + len(t.Secret) + 8 + 1
	if len(b) < head {
		return nil, errors.New("too short")
	}
	next := func(n int) []byte {
		part := b[:n]
		b = b[n:]
		return part
	}
	copy(t.CA[:], next(len(t.CA)))
	copy(t.Cluster[:], next(len(t.Cluster)))
	copy(t.ID[:], next(len(t.ID)))
	copy(t.Secret[:], next(len(t.Secret)))
	secs := binary.BigEndian.Uint64(next(8))
	if secs > 1<<38 { // the year 10680: more cannot be printed
		return nil, errors.New("expiry out of range")
	}
	t.Expires = time.Unix(int64(secs), 0).UTC()
	for range next(1)[0] {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return nil, errors.New("addresses cut short")
		}
		t.Addrs = append(t.Addrs, string(next(int(next(1)[0]))))
	}
	if len(b) != 0 {
		return nil, errors.New("unknown fields: it was made by a newer version")
	}
	return t, t.check()
}

func (t *Token) check() error {
	if n := len(t.Addrs); n < 1 || n > MaxTokenAddrs {
		return fmt.Errorf("%d addresses: want 1 to %d", n, MaxTokenAddrs)
	}
	for _, a := range t.Addrs {
		if err := checkAddr(a); err != nil {
			return err
		}
	}
	return nil
}

// checkAddr wants host:port with both parts there.
func checkAddr(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" || port == "" || len(a) > maxTokenAddr {
		return fmt.Errorf("address %q: want HOST:PORT", a)
	}
	return nil
}
