package backup

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"
)

var update = flag.Bool("update", false, "write the fixture of this level anew")

func has(t testing.TB, w *Writer, h Hash) bool {
	t.Helper()
	ok, err := w.Has(h)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func hashOf(b []byte) Hash { return Hash(blake3.Sum256(b)) }

// sample writes a small backup with everything in it.
func sample(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{
		Cluster: "c1", Node: "n1", Version: "1.0", Created: time.Unix(1_800_000_000, 0).UTC(), Groups: []string{"web"}, Bytes: 20,
	}, nil)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(err)
	check(w.Part(Part{Kind: PartControl}, func(w io.Writer) error {
		_, err := io.WriteString(w, `{"id":"c1","index":7,"nodes":[],"groups":[]}`)
		return err
	}))
	var fragment bytes.Buffer
	f := NewFragment(&fragment, nil)
	small, large := []byte("hello"), bytes.Repeat([]byte("0123456789"), 2_000)
	for _, c := range [][]byte{small, small, {}} {
		if ok, err := f.Content(hashOf(c), uint64(len(c)), bytes.NewReader(c)); err != nil || !ok {
			t.Fatalf("content: %v, %v", ok, err)
		}
	}
	for _, other := range []string{"changed meanwhile", strings.Repeat("x", len(large))} {
		if ok, err := f.Content(hashOf(large), uint64(len(large)), strings.NewReader(other)); err != nil || ok || has(t, f, hashOf(large)) {
			t.Fatalf("a content that is not what its name says: %v, %v", ok, err)
		}
	}
	if ok, err := f.Content(hashOf(large), uint64(len(large)), bytes.NewReader(large)); err != nil || !ok || !has(t, f, hashOf(large)) {
		t.Fatalf("content: %v, %v", ok, err)
	}
	check(f.Part(Part{Kind: PartState, Group: "web", Position: Position{History: "ab", Term: 2, Index: 9}, Files: 3}, func(w io.Writer) error {
		_, err := io.WriteString(w, "the state")
		return err
	}))
	check(f.EndGroup())
	check(w.Forward(bytes.NewReader(fragment.Bytes())))
	check(w.Forward(bytes.NewReader(fragmentWith(t, small))))
	_, err = w.Finish()
	check(err)
	return out.Bytes()
}

func fragmentWith(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	f := NewFragment(&b, nil)
	if _, err := f.Content(hashOf(content), uint64(len(content)), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := f.EndGroup(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// held is what a reader was shown.
type held struct {
	header   Header
	parts    map[string]string
	contents map[Hash]string
	index    Index
}

func load(b []byte) (held, error) {
	h := held{parts: map[string]string{}, contents: map[Hash]string{}}
	var err error
	h.index, err = Read(bytes.NewReader(b), Handler{
		Header: func(x Header) error { h.header = x; return nil },
		Part: func(p Part, body io.Reader) error {
			b, err := io.ReadAll(body)
			h.parts[p.Kind+" "+p.Group] = string(b)
			return err
		},
		Content: func(x Hash, size uint64, body io.Reader) error {
			b, err := io.ReadAll(body)
			if err == nil {
				h.contents[x] = string(b)
			}
			return nil
		},
	})
	return h, err
}

func TestRoundTrip(t *testing.T) {
	h, err := load(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	if h.header.Cluster != "c1" || h.parts["state web"] != "the state" || len(h.parts) != 2 {
		t.Errorf("%+v", h.header)
	}
	if len(h.contents) != 3 || h.contents[hashOf([]byte("hello"))] != "hello" || h.index.Contents != 3 || h.index.ContentBytes != 20_005 {
		t.Errorf("%d contents, index %+v", len(h.contents), h.index)
	}
	for hash, content := range h.contents {
		if hashOf([]byte(content)) != hash {
			t.Errorf("content %s is another", hash)
		}
	}
	if p, ok := h.index.Part(PartState, "web"); !ok || p.Length != 9 || p.Position.Index != 9 || p.Files != 3 {
		t.Errorf("%+v", p)
	}
	if got := h.index.Groups(); !reflect.DeepEqual(got, []string{"web"}) {
		t.Errorf("groups %v", got)
	}
}

// TestEveryCutAndEveryFlipIsFound: no prefix passes for a backup, and no altered byte either.
func TestEveryCutAndEveryFlipIsFound(t *testing.T) {
	good := sample(t)
	for n := range len(good) {
		if n > 400 && n < len(good)-1200 && n%97 != 0 {
			continue
		}
		if _, err := load(good[:n]); !errors.Is(err, ErrTruncated) && !(n < len(magic) && errors.Is(err, ErrNotBackup)) {
			t.Fatalf("cut at %d of %d: %v", n, len(good), err)
		}
		bad := bytes.Clone(good)
		bad[n] ^= 1 << (n % 8)
		if _, err := load(bad); err == nil {
			t.Fatalf("byte %d of %d altered: not found", n, len(good))
		}
	}
	if _, err := load(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("something behind the end: %v", err)
	}
}

func TestNewerAbortedAndForeign(t *testing.T) {
	newer := bytes.Replace(sample(t), fmt.Appendf(nil, `{"level":%d,`, Level), []byte(`{"level":9,`), 1)
	if _, err := load(newer); !errors.Is(err, ErrNewer) {
		t.Errorf("newer: %v", err)
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(errors.New("the member went away")); err != nil {
		t.Fatal(err)
	}
	if _, err := load(out.Bytes()); !errors.Is(err, ErrAborted) || !strings.Contains(err.Error(), "went away") {
		t.Errorf("aborted: %v", err)
	}
	for _, foreign := range []string{"", "x", "PK\x03\x04 and so on and on"} {
		if _, err := load([]byte(foreign)); !errors.Is(err, ErrNotBackup) {
			t.Errorf("%q: %v", foreign, err)
		}
	}
	var f bytes.Buffer
	frag := NewFragment(&f, nil)
	if err := frag.Abort(errors.New("no")); err != nil {
		t.Fatal(err)
	}
	if err := ReadFragment(&f, Handler{}); !errors.Is(err, ErrAborted) {
		t.Errorf("an aborted fragment: %v", err)
	}
}

// TestAnotherSourceTakesOver: what a member sent before it failed counts, and the next one ends the group.
func TestAnotherSourceTakesOver(t *testing.T) {
	var first bytes.Buffer
	f := NewFragment(&first, nil)
	for _, text := range []string{"one", "two"} {
		if _, err := f.Content(hashOf([]byte(text)), 3, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Forward(bytes.NewReader(first.Bytes()[:first.Len()-5])); !errors.Is(err, ErrTruncated) || w.Open() || !has(t, w, hashOf([]byte("one"))) {
		t.Fatalf("a member that goes away inside a content: %v, open %v", err, w.Open())
	}
	if err := w.Forward(bytes.NewReader(fragmentWith(t, []byte("two")))); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if h, err := load(out.Bytes()); err != nil || len(h.contents) != 2 {
		t.Errorf("%v, %v", h.contents, err)
	}
	err = w.Part(Part{Kind: PartState}, func(io.Writer) error { return errors.New("gone") })
	if err == nil || !w.Open() {
		t.Errorf("a part that was not ended: %v, open %v", err, w.Open())
	}
}

// TestPartsCannotBeDroppedOrDoubled: a file that was put together anew, record by record, does not pass either.
func TestPartsCannotBeDroppedOrDoubled(t *testing.T) {
	for name, write := range map[string]func(w *Writer) error{
		"a part twice": func(w *Writer) error {
			p := Part{Kind: PartState, Group: "g"}
			body := func(w io.Writer) error { _, err := w.Write([]byte("x")); return err }
			return errors.Join(w.Part(p, body), w.Part(p, body))
		},
		"an index of something else": func(w *Writer) error {
			w.index.Parts = append(w.index.Parts, Part{Kind: PartState, Group: "dropped"})
			return nil
		},
		"fewer contents than it says": func(w *Writer) error {
			w.index.Contents++
			return nil
		},
		"a content under another name": func(w *Writer) error {
			name := hashOf([]byte("other"))
			return errors.Join(w.record(kindContent, append(name[:], 0, 0, 0, 0, 0, 0, 0, 1)), w.record(kindData, []byte("x")), w.verdict(name, 1, true))
		},
		"a content that is shorter than it says": func(w *Writer) error {
			name := hashOf([]byte("x"))
			return errors.Join(w.record(kindContent, append(name[:], 0, 0, 0, 0, 0, 0, 0, 2)), w.record(kindData, []byte("x")), w.verdict(name, 2, true))
		},
		"a content twice": func(w *Writer) error {
			name := hashOf(nil)
			head := append(name[:], 0, 0, 0, 0, 0, 0, 0, 0)
			return errors.Join(w.record(kindContent, head), w.verdict(name, 0, true), w.record(kindContent, head), w.verdict(name, 0, true))
		},
		"the end of a fragment": func(w *Writer) error { return w.EndGroup() },
	} {
		var out bytes.Buffer
		w, err := NewWriter(&out, Header{}, nil)
		if err == nil {
			err = write(w)
		}
		if err == nil {
			_, err = w.Finish()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := load(out.Bytes()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFixtures opens a backup of every level that there was.
func TestFixtures(t *testing.T) {
	path := filepath.Join("testdata", fmt.Sprintf("level-%d.backup", Level))
	if *update {
		if err := os.WriteFile(path, sample(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for level := 1; level <= Level; level++ {
		b, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("level-%d.backup", level)))
		if err != nil {
			t.Fatal(err)
		}
		h, err := load(b)
		if err != nil || h.header.Level != level || h.parts["state web"] != "the state" || h.contents[hashOf([]byte("hello"))] != "hello" {
			t.Errorf("level %d: %+v, %v", level, h.header, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	good := sample(f)
	f.Add(good)
	f.Add(good[:200])
	f.Add([]byte(magic + "H\x00\x00\x00\x02{}"))
	f.Add([]byte(magic + "H\x00\x00\x00\x0b{\"level\":1}D\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := load(b)
		if err != nil {
			return
		}
		if int(h.index.Contents) != len(h.contents) {
			t.Fatalf("%d contents, the index says %d", len(h.contents), h.index.Contents)
		}
		for hash, content := range h.contents {
			if hashOf([]byte(content)) != hash {
				t.Fatalf("content %s passed and is another", hash)
			}
		}
	})
}

func FuzzReadFragment(f *testing.F) {
	f.Add(fragmentWith(f, []byte("x")))
	f.Add([]byte("G\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := ReadFragment(bytes.NewReader(b), Handler{})
		if err == nil && !bytes.Contains(b, []byte("G\x00\x00\x00\x00")) {
			t.Fatal("a fragment without an end passed")
		}
	})
}
