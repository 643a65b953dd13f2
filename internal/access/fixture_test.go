package access

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixtureOfJoining reads a token and the messages of a join as they were first written.
func TestFixtureOfJoining(t *testing.T) {
	tok, err := NewToken(ClusterID{1, 2}, Fingerprint{3, 4}, []string{"h:1", "10.0.0.1:7420"}, time.Hour, day0, seeded(3))
	if err != nil {
		t.Fatal(err)
	}
	req := &JoinRequest{Token: tok.ID, Secret: tok.Secret, Name: "n2", Address: "h:2", CSR: []byte{5, 6}, Version: "1.0", Level: 1, Zone: "z", Replace: true}
	reply := &JoinReply{Node: 2, Cluster: ClusterID{1, 2}, Cert: []byte("cert"), CA: []byte("ca"), Peers: []JoinPeer{{1 << 63, "n1", "h:1"}}}
	var first, second bytes.Buffer
	if _, err := req.WriteTo(&first); err != nil {
		t.Fatal(err)
	}
	if _, err := reply.WriteTo(&second); err != nil {
		t.Fatal(err)
	}
	held := fixture.Check(t, "join-1.hex", map[string][]byte{"token": []byte(tok.Encode()), "request": first.Bytes(), "reply": second.Bytes()})
	if got, err := ParseToken(string(held["token"])); err != nil || !reflect.DeepEqual(got, tok) {
		t.Errorf("token %+v, %v", got, err)
	}
	if got, err := ReadJoinRequest(bytes.NewReader(held["request"])); err != nil || !reflect.DeepEqual(got, req) {
		t.Errorf("request %+v, %v", got, err)
	}
	if got, err := ReadJoinReply(bytes.NewReader(held["reply"])); err != nil || !reflect.DeepEqual(got, reply) {
		t.Errorf("reply %+v, %v", got, err)
	}
}

// identityFiles are the files of an identity.
var identityFiles = []string{fileKey, fileCert, fileCA, fileNode}

// fixtureIdentity is made of fixed randomness.
func fixtureIdentity(t *testing.T, dir string) map[string][]byte {
	if err := Create(dir, newCluster(t, 1).node(2, "n2", clockAt(day0))); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, name := range identityFiles {
		b, err := os.ReadFile(filepath.Join(dir, dirIdentity, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return files
}

// TestFixtureOfIdentity loads an identity as level 1 wrote it.
func TestFixtureOfIdentity(t *testing.T) {
	held := fixture.Check(t, "identity-1.hex", fixtureIdentity(t, t.TempDir()))
	dir := t.TempDir()
	writeIdentity(t, dir, held)
	id, err := Load(dir, clockAt(day0))
	if err != nil {
		t.Fatal(err)
	}
	if id.Level() != 1 || id.Node() != 2 || id.Name() != "n2" || id.Cluster() != (ClusterID{1, 0xff}) {
		t.Errorf("level %d, node %d (%s) of %s", id.Level(), id.Node(), id.Name(), id.Cluster())
	}
}

// TestMark: a directory that was used at a level is for no program that does not know it, and the same otherwise.
func TestMark(t *testing.T) {
	dir := t.TempDir()
	writeIdentity(t, dir, fixtureIdentity(t, t.TempDir()))
	id, err := Load(dir, clockAt(day0))
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, dirIdentity, fileNode+".new") // by an attempt that was interrupted
	if err := os.WriteFile(left, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Mark(dir, id, Level); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir, clockAt(day0))
	if err != nil || again.Level() != Level || again.Node() != id.Node() || again.Name() != id.Name() || again.Cluster() != id.Cluster() {
		t.Fatalf("%+v, %v", again, err)
	}
	if err := Mark(dir, id, Level+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, clockAt(day0)); !errors.Is(err, ErrNewerLevel) {
		t.Errorf("error %v", err)
	}
	if err := Mark(filepath.Join(dir, "nowhere"), id, Level); err == nil {
		t.Error("a directory that is not there is marked")
	}
}

func writeIdentity(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, dirIdentity), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, dirIdentity, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzIdentity loads any bytes as the files of an identity.
func FuzzIdentity(f *testing.F) {
	files := fixtureIdentity(&testing.T{}, f.TempDir())
	f.Add(files[fileKey], files[fileCert], files[fileCA], files[fileNode])
	f.Add(files[fileKey], files[fileCert], files[fileCA], []byte(`{"level":2}`))
	f.Fuzz(func(t *testing.T, key, cert, ca, node []byte) {
		dir := t.TempDir()
		writeIdentity(t, dir, map[string][]byte{fileKey: key, fileCert: cert, fileCA: ca, fileNode: node})
		id, err := Load(dir, clockAt(day0))
		if err != nil {
			return
		}
		again := t.TempDir()
		if err := Create(again, id); err != nil {
			t.Fatal(err)
		}
		if twice, err := Load(again, clockAt(day0)); err != nil || twice.Node() != id.Node() || twice.Name() != id.Name() {
			t.Fatalf("%v became %v, %v", id, twice, err)
		}
	})
}
