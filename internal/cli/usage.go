package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstep-sync/lockstep/api"
)

// flagError turns what pflag says into an error with a way out.
func flagError(cmd *cobra.Command, err error) error {
	e := &api.Error{Code: api.CodeUsage, Op: opName(cmd), Why: err.Error(), Hint: fmt.Sprintf("see `%s -h`", cmd.CommandPath())}
	var value *pflag.InvalidValueError
	if errors.As(err, &value) && value.GetFlag().Value.Type() == "duration" {
		e.Subject, e.Why, e.Hint = "--"+value.GetFlag().Name, fmt.Sprintf("%q is not a duration", value.GetValue()), "write for instance 30s or 5m"
		return e
	}
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return e
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
		e.Hint = fmt.Sprintf("did you mean --%s?", near)
	}
	return e
}

// wants checks the arguments against the words of the command's usage line: upper-case words are required,
// words in brackets are not.
func wants(cmd *cobra.Command, args []string) error {
	var required, all int
	for _, word := range strings.Fields(cmd.Use)[1:] {
		if strings.HasPrefix(word, "-") || strings.HasPrefix(word, "[-") {
			break // flags come last
		}
		all++
		if !strings.HasPrefix(word, "[") {
			required++
		}
	}
	if len(args) >= required && len(args) <= all {
		return nil
	}
	why := fmt.Sprintf("wants %d arguments, got %d", required, len(args))
	switch {
	case len(args) > all:
		why = fmt.Sprintf("does not know what to do with %q", args[all])
	case required == 1:
		why = "an argument is missing"
	}
	return &api.Error{Code: api.CodeUsage, Op: opName(cmd), Why: why, Hint: "usage: " + cmd.UseLine()}
}

// nearest returns the candidate that word was probably meant to be, or "".
func nearest(word string, candidates []string) string {
	best, bestDistance := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		d := distance(strings.ToLower(word), c)
		if len(word) >= 2 && strings.HasPrefix(c, strings.ToLower(word)) {
			d = 1
		}
		if d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours that make b of a.
func distance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// opName is the command without the program's name.
func opName(cmd *cobra.Command) string {
	_, op, _ := strings.Cut(cmd.CommandPath(), " ")
	return op
}
