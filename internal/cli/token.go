package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type (
	newToken   api.Token
	tokenList  []api.Token
	doneResult api.Done
)

func (a *app) tokenCommand() *cobra.Command {
	var ttl string
	create := &cobra.Command{
		Use:        "create",
		SuggestFor: []string{"invite", "node add"},
		Short:      "Make a token with which another server may join",
		Long: `Make a token with which other servers may join the cluster. Whoever has it can join: hand it over
like a password. The token is the last word of the output and cannot be shown again.`,
		Example: "  lockstep token create --ttl 30m\n  lockstep serve --data DIR --join \"$(lockstep token create | tail -n1 | awk '{print $NF}')\"",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (newToken, error) {
			t, err := c.TokenCreate(ctx, api.TokenCreate{TTL: ttl})
			return newToken(t), err
		}),
	}
	create.Flags().StringVar(&ttl, "ttl", "1h", "how long the token admits servers; at most 720h")
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens that still admit servers",
		Example: "  lockstep token list",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (tokenList, error) {
			return c.Tokens(ctx)
		}),
	}
	revoke := &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a token worthless; servers that joined with it stay",
		Example: "  lockstep token list\n  lockstep token revoke 749aa1ca07c3ad96",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			d, err := c.TokenRevoke(ctx, args[0])
			return doneResult(d), err
		}),
	}
	return a.noun("token", "Let other servers join", "  lockstep token create", create, list, revoke)
}

func (t newToken) text(w io.Writer) error {
	_, err := fmt.Fprintf(w, "Token %s admits servers until %s. On the new server:\n  lockstep serve --data DIR --join %s\n",
		t.ID, moment(t.Expires), t.Token)
	return err
}

func (l tokenList) text(w io.Writer) error {
	rows := [][]string{{"TOKEN", "EXPIRES", "USED"}}
	for _, t := range l {
		rows = append(rows, []string{t.ID, moment(t.Expires), fmt.Sprint(t.Used)})
	}
	return table(w, rows)
}

func (d doneResult) text(w io.Writer) error {
	_, err := fmt.Fprintln(w, d.Text)
	return err
}
