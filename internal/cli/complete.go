package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/client"
)

// completePatience bounds the question to the node: who presses the tab key waits for it.
const completePatience = time.Second

// flagWords are what flags accept that are not free. A nil list means names of nodes.
func flagWords() map[string][]string {
	return map[string][]string{
		"output": {"text", "json"}, "ack": {"local", "quorum", "all"}, "conflict": {"keep-both", "first", "newest", "prefer:"}, "mode": {"readwrite"},
		"topology": {"star", "chain", "tree:", "auto"}, "role": {"voter", "observer", "spare"}, "log": {"text", "json"},
		"log-level": {"debug", "info", "warn", "error"}, "on": nil, "node": nil,
	}
}

// completeBelow lets a shell complete what the usage line of each command asks for.
func (a *app) completeBelow(c *cobra.Command) error {
	for name, words := range flagWords() {
		if c.LocalNonPersistentFlags().Lookup(name) == nil && c.PersistentFlags().Lookup(name) == nil {
			continue
		}
		err := c.RegisterFlagCompletionFunc(name, func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
			if words == nil {
				return a.completeNodes(cmd.Context(), typed)
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			return err
		}
	}
	if !c.HasSubCommands() && c.ValidArgs == nil {
		c.ValidArgsFunction = a.completeArgument
	}
	for _, sub := range c.Commands() {
		if err := a.completeBelow(sub); err != nil {
			return err
		}
	}
	return nil
}

// completeArgument goes by the word of the usage line at the place of the argument: GROUP, NODE, FILE, or a choice.
func (a *app) completeArgument(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	for _, w := range strings.Fields(cmd.Use)[1:] {
		if strings.HasPrefix(w, "-") || strings.HasPrefix(w, "[-") {
			break
		}
		words = append(words, w)
	}
	if len(words) == 0 || len(args) >= len(words) && !strings.Contains(words[len(words)-1], "…") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	switch word := strings.Trim(words[min(len(args), len(words)-1)], "[]…"); {
	case strings.Contains(word, "|"):
		return strings.Split(word, "|"), cobra.ShellCompDirectiveNoFileComp
	case word == "GROUP":
		return a.completeGroups(cmd.Context())
	case word == "NODE":
		return a.completeNodes(cmd.Context(), "")
	case word == "NODE:DIR":
		nodes, how := a.completeNodes(cmd.Context(), "")
		for i := range nodes {
			nodes[i] += ":/"
		}
		return nodes, how | cobra.ShellCompDirectiveNoSpace
	case word == "FILE":
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeGroups(ctx context.Context) (names []string, how cobra.ShellCompDirective) {
	err := a.askToComplete(ctx, func(ctx context.Context, c *client.Client) error {
		groups, err := c.Groups(ctx)
		for _, g := range groups {
			names = append(names, g.Name+"\t"+g.Kind)
		}
		return err
	})
	return names, completed(err)
}

// completeNodes completes the last name of a comma-separated list.
func (a *app) completeNodes(ctx context.Context, typed string) (names []string, how cobra.ShellCompDirective) {
	before := typed[:strings.LastIndexByte(typed, ',')+1]
	err := a.askToComplete(ctx, func(ctx context.Context, c *client.Client) error {
		nodes, err := c.Nodes(ctx)
		for _, n := range nodes {
			names = append(names, before+n.Name)
		}
		return err
	})
	return names, completed(err)
}

func (a *app) askToComplete(ctx context.Context, ask func(context.Context, *client.Client) error) error {
	c, err := client.New(a.serverAddress())
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, completePatience)
	defer cancel()
	return ask(ctx, c)
}

// completed: without an answer nothing is completed, not even names of files.
func completed(err error) cobra.ShellCompDirective {
	if err != nil {
		return cobra.ShellCompDirectiveError
	}
	return cobra.ShellCompDirectiveNoFileComp
}
