package cli

import (
	"errors"
	"fmt"
	"slices"
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
	if errors.As(err, &value) {
		what := map[string]string{"int": "a whole number", "uint": "a whole number", "bool": "true or false"}[value.GetFlag().Value.Type()]
		if what != "" {
			e.Subject, e.Why = "--"+value.GetFlag().Name, fmt.Sprintf("%q is not %s", value.GetValue(), what)
		}
		return e
	}
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return e
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := api.Nearest(unknown.GetSpecifiedName(), names); near != "" {
		e.Hint = fmt.Sprintf("did you mean --%s?", near)
	} else if meant := meantBy(cmd, unknown.GetSpecifiedName()); len(meant) > 0 {
		e.Hint = "did you mean " + orList(meant) + "?"
	}
	return e
}

// meantBy are the commands that a word below cmd may stand for: those that have it as their name further down, and those
// that others call so (cobra's SuggestFor). What is below cmd comes before what is elsewhere.
func meantBy(cmd *cobra.Command, word string) (meant []string) {
	var look func(c *cobra.Command, called string)
	look = func(c *cobra.Command, called string) {
		for _, sub := range c.Commands() {
			if sub.Name() == word && called == word || slices.Contains(sub.SuggestFor, called) {
				meant = append(meant, fmt.Sprintf("`%s`", sub.CommandPath()))
			}
			look(sub, called)
		}
	}
	if look(cmd, word); len(meant) == 0 && cmd.HasParent() {
		look(cmd.Root(), cmd.Name()+" "+word)
	}
	return meant
}

// orList is a, b or c; there is at least one.
func orList(list []string) string {
	last := len(list) - 1
	if last == 0 {
		return list[0]
	}
	return strings.Join(list[:last], ", ") + " or " + list[last]
}

// outputAsked is the form of output that the arguments ask for, wherever in them: parsing ends at what it does not know,
// and the error is to be told as asked all the same. "" if they ask for none that there is.
func outputAsked(args []string) (form string) {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		value, found := "", false
		switch {
		case arg == "-o" || arg == "--output":
			if i+1 < len(args) {
				value, found = args[i+1], true
			}
		case strings.HasPrefix(arg, "--output="):
			value, found = strings.TrimPrefix(arg, "--output="), true
		case strings.HasPrefix(arg, "-o"):
			value, found = strings.TrimPrefix(strings.TrimPrefix(arg, "-o"), "="), true
		}
		if found && (value == "json" || value == "text") {
			form = value
		}
	}
	return form
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

// opName is the command without the program's name.
func opName(cmd *cobra.Command) string {
	_, op, _ := strings.Cut(cmd.CommandPath(), " ")
	return op
}
