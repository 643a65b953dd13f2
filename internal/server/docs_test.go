package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	httpdoor "github.com/lockstep-sync/lockstep/internal/door/http"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	filewatch "github.com/lockstep-sync/lockstep/internal/files/watch"
)

// TestPagesNameTheLimits: a number that an operator is told is the one that the program goes by, in both languages. Who
// changes one changes the other.
func TestPagesNameTheLimits(t *testing.T) {
	whole := func(d, unit time.Duration) string { return fmt.Sprint(int(d / unit)) }
	for _, c := range []struct {
		page, en, zh string // %s stands for the number
		number       string
	}{
		{"getting-started.md", "(after %s s it does not", "最多等 %s 秒", whole(boundTime, time.Second)},
		{"operations.md", "in up to %s directories", "最多在 %s 个", thousands(nestedDirs)},
		{"operations.md", "or less than %s MiB are free", "剩余不足 %s MiB（", fmt.Sprint(floorMax >> 20)},
		{"operations.md", "(of a small one less than %s %%)", "小文件系统为不足 %s %%", fmt.Sprint(100 / float64(floorShare))},
		{"operations.md", "with less than %s MiB free", "剩余不足 %s MiB 时", fmt.Sprint(startRoom >> 20)},
		{"operations.md", "when two differ by more than %s s", "相差超过 %s 秒即警告", whole(transport.ClockBound, time.Second)},
		{"cli.md", "if nothing moves for %s s", "%s 秒内毫无进展", whole(standstill, time.Second)},
		{"cli.md", "once nothing has moved for %s minutes", "否则在 %s 分钟毫无进展后", whole(longestStep, time.Minute)},
		{"cli.md", "for %s minutes nothing else moves it", "%s 分钟内不会被自动移动", whole(control.ChosenFor, time.Minute)},
		{"cli.md", "at most %sh", "最长 %sh", whole(httpdoor.MaxTTL, time.Hour)},
		{"files.md", "(after %s s, see `group", "%s 秒后，见 `group", whole(control.DefaultInSyncAfter, time.Second)},
		{"sizing.md", "polling, every %s s", "每 %s s 一次的轮询", whole(filewatch.DefaultPollEvery, time.Second)},
	} {
		for language, says := range map[string]string{"en": c.en, "zh": c.zh} {
			file := filepath.Join("..", "..", "docs", language, c.page)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf(says, c.number); !strings.Contains(strings.Join(strings.Fields(string(b)), " "), want) {
				t.Errorf("%s does not say %q", file, want)
			}
		}
	}
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
