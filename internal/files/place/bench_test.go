package place

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zeebo/blake3"
)

const benchSize = 5 << 10

// benchTasks are n files of 5 KB in directories of 500, as a first copy of a tree has them.
func benchTasks(n int, version uint64, have []Result) []Task {
	var tasks []Task
	for i := range n {
		dir := fmt.Sprintf("d%03d", i/500)
		if i%500 == 0 && have == nil {
			tasks = append(tasks, Task{Path: dir, Want: dirNode(version)})
		}
		content := make([]byte, benchSize)
		for j := range content {
			content[j] = byte(i + j*7 + int(version))
		}
		node := fileNode(version, string(content))
		node.Hash = blake3.Sum256(content)
		node.Mode = 0o644
		tasks = append(tasks, Task{Path: fmt.Sprintf("%s/file-%06d", dir, i), Want: node, Inline: content})
	}
	for i := range have {
		tasks[i].Have = have[i].Placed
	}
	return tasks
}

// BenchmarkPlace reports time and processor time for each file. Mind that ext4 creates files slowly for
// minutes after many were removed: run it on a quiet file system, with PLACE_BENCH_DIR on one made for it.
func BenchmarkPlace(b *testing.B) {
	for _, kind := range []string{"new", "new work", "replace", "delete", "adopted"} {
		b.Run(kind, func(b *testing.B) { benchPlace(b, kind) })
	}
}

func benchPlace(b *testing.B, kind string) {
	dir, err := os.MkdirTemp(os.Getenv("PLACE_BENCH_DIR"), "bench")
	if err != nil {
		b.Fatal(err)
	}
	if os.Getenv("PLACE_BENCH_DIR") == "" {
		b.Cleanup(func() { os.RemoveAll(dir) })
	}
	f := openFixture(b, dir)
	if kind == "new work" {
		f.p.learn(lackTmpfile)
	}
	tasks := benchTasks(b.N, 1, nil)
	if kind != "new" && kind != "new work" {
		rs := f.applyAll(b, tasks)
		files := tasks[:0:0]
		var have []Result
		for i, t := range tasks {
			if t.Want.Size > 0 {
				files, have = append(files, t), append(have, rs[i])
			}
		}
		tasks = benchTasks(len(files), 2, have)
		for i := range tasks {
			switch kind {
			case "delete":
				tasks[i].Want, tasks[i].Inline = gone(2), nil
			case "adopted":
				tasks[i].Want, tasks[i].SameContent = files[i].Want, true
				tasks[i].Want.Version = 2
			}
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := processorTime()
	f.applyAll(b, tasks)
	b.ReportMetric(float64(processorTime()-before)/1e3/float64(b.N), "cpu-µs/op")
}

func (f *fixture) applyAll(b *testing.B, tasks []Task) []Result {
	var out []Result
	for len(tasks) > 0 { // as the agent does: some hundreds at a time
		n := min(1000, len(tasks))
		rs, _ := f.p.Apply(context.Background(), tasks[:n], f.bytes)
		for _, r := range rs {
			if r.Code > Adopted {
				b.Fatal(r.Code, r.Err)
			}
		}
		out, tasks = append(out, rs...), tasks[n:]
	}
	return out
}

func processorTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
