package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture reads what a node starts from as level 1 wrote it.
func TestFixture(t *testing.T) {
	h := hint{Node: 2, Cluster: "01ff", Role: control.RoleVoter, Replica: 3, Recast: true, Peers: map[uint64]string{1: "h:1", 2: "h:2"}, Opened: true}
	l := lifeRecord{Age: 7, Peers: map[uint64]control.Life{1: {Boot: 1 << 63, Age: 9}}, Refused: &api.Error{Code: api.CodeDamage, Op: "serve", Why: "why", Hint: "hint"}}
	o := owned{Replica: 3, Binding: 2, Role: control.RoleVoter, Path: "/srv/web", Recast: true}
	init := control.Init{Cluster: control.Cluster{ID: "01ff", CACert: []byte("cert"), CAKey: []byte("key")},
		Node: control.Node{ID: 1, Name: "n1", Address: "h:1"}, History: [16]byte{1, 2}}
	made := map[string][]byte{}
	dir := t.TempDir()
	for name, v := range map[string]any{hintFile: h, lifeFile: l, "owned": o, initFile: init, "owner": owner{2, "01ff"}} {
		if err := writeJSON(filepath.Join(dir, name), v); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		made[name] = b
	}
	held := fixture.Check(t, "start-1.hex", made)
	data := &dataDir{path: t.TempDir()}
	for name, want := range map[string]any{hintFile: &h, lifeFile: &l, "owned": &o, initFile: &init, "owner": &owner{2, "01ff"}} {
		if err := os.WriteFile(data.sub(name), held[name], 0o600); err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface()
		if err := data.load(name, got, false); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// FuzzStart reads any bytes as the files that a node starts from. What is taken comes out the same when it is written
// again; what is not is an error with a way out.
func FuzzStart(f *testing.F) {
	f.Add([]byte(`{"node": 1, "role": "voter", "peers": {"1": "h:1"}, "opened": true}`))
	f.Add([]byte(`{"age": 3, "peers": {"2": {}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		data := &dataDir{path: t.TempDir()}
		for name, into := range map[string]func() any{
			hintFile: func() any { return new(hint) }, lifeFile: func() any { return new(lifeRecord) }, "owned": func() any { return new(owned) },
		} {
			if err := os.WriteFile(data.sub(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			v, again := into(), into()
			if err := data.load(name, v, false); err != nil {
				if e, ok := err.(*api.Error); !ok || e.Hint == "" || e.Code != api.CodeDamage {
					t.Fatalf("%v", err)
				}
				continue
			}
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, again); err != nil {
				t.Fatalf("%s became %s, %v", b, text, err)
			}
			if twice, err := json.Marshal(again); err != nil || string(twice) != string(text) {
				t.Fatalf("%s became %s, %v", text, twice, err)
			}
		}
	})
}
