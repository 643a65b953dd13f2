package httpdoor

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

type none = request[api.None]

// routes registers every route of the API.
func (m *router) routes(n Node) {
	plain(m, api.RouteVersion(), func(ctx context.Context, _ none) (any, error) { return n.Version(ctx) })
	plain(m, api.RouteStatus(), func(ctx context.Context, _ none) (any, error) { return n.Status(ctx) })
	plain(m, api.RouteNodes(), func(ctx context.Context, _ none) (any, error) { return n.Nodes(ctx) })
	plain(m, api.RouteLevel(), func(ctx context.Context, _ none) (any, error) { return n.Level(ctx) })
	plain(m, api.RouteTokens(), func(ctx context.Context, _ none) (any, error) { return n.TokenList(ctx) })
	plain(m, api.RouteGroups(), func(ctx context.Context, _ none) (any, error) { return n.Groups(ctx) })
	plain(m, api.RouteGroup(), func(ctx context.Context, r none) (any, error) { return n.Group(ctx, r.PathValue("group")) })
	plain(m, api.RouteGroupToken(), func(ctx context.Context, r none) (any, error) {
		return n.GroupToken(ctx, r.PathValue("group"), r.PathValue("token"))
	})
	plain(m, api.RouteDirStatus(), func(ctx context.Context, r none) (any, error) { return n.DirStatus(ctx, r.PathValue("group")) })
	plain(m, api.RouteDirConflicts(), func(ctx context.Context, r none) (any, error) {
		return n.DirConflicts(ctx, r.PathValue("group"))
	})
	plain(m, api.RouteDirList(), func(ctx context.Context, r request[api.None]) (any, error) {
		req, err := listRequest(r)
		if err != nil {
			return nil, err
		}
		return n.DirList(ctx, r.PathValue("group"), req)
	})
	m.changes(n)
	m.longOnes(n)
	m.backups(n)
}

// changes registers what changes the cluster.
func (m *router) changes(n Node) {
	plain(m, api.RouteTokenCreate(), func(ctx context.Context, r request[api.TokenCreate]) (any, error) {
		ttl, err := tokenTTL(r.Body.TTL)
		if err != nil {
			return nil, err
		}
		return n.TokenCreate(ctx, ttl)
	})
	plain(m, api.RouteLevelRaise(), func(ctx context.Context, r request[api.LevelRaise]) (any, error) {
		return n.LevelRaise(ctx, r.Body)
	})
	plain(m, api.RouteTokenRevoke(), func(ctx context.Context, r none) (any, error) {
		id := r.PathValue("id")
		return done("token revoke", id, "token "+id+" no longer admits anyone", n.TokenRevoke(ctx, id))
	})
	plain(m, api.RouteGroupTransfer(), func(ctx context.Context, r request[api.GroupTransfer]) (any, error) {
		group := r.PathValue("group")
		if err := required("group transfer", "node", r.Body.Node); err != nil {
			return nil, err
		}
		return done("group transfer", group, r.Body.Node+" leads "+group, n.TransferLeader(ctx, group, r.Body.Node))
	})
	plain(m, api.RouteGroupMember(), func(ctx context.Context, r request[api.GroupMember]) (any, error) {
		group := r.PathValue("group")
		if err := required("group members", "node", r.Body.Node); err != nil {
			return nil, err
		}
		return done("group members "+r.Body.Op, group, group+": "+r.Body.Op+" "+r.Body.Node+" is under way", n.GroupMember(ctx, group, r.Body))
	})
	plain(m, api.RouteGroupDelete(), func(ctx context.Context, r none) (any, error) {
		group := r.PathValue("group")
		return done("group delete", group, group+" has ended; its files stay where they are", n.GroupDelete(ctx, group))
	})
	plain(m, api.RouteClusterSet(), func(ctx context.Context, r request[api.ClusterSet]) (any, error) {
		if r.Body == (api.ClusterSet{}) {
			return nil, &api.Error{Code: api.CodeUsage, Op: "cluster set", Subject: "cluster", Why: "nothing is to be changed", Hint: "give repair_after"}
		}
		return done("cluster set", "cluster", "cluster: repair-after "+r.Body.RepairAfter, n.ClusterSet(ctx, r.Body))
	})
	plain(m, api.RouteGroupSet(), func(ctx context.Context, r request[api.GroupSet]) (any, error) {
		group := r.PathValue("group")
		if r.Body == (api.GroupSet{}) {
			return nil, &api.Error{Code: api.CodeUsage, Op: "group set", Subject: group, Why: "nothing is to be changed",
				Hint: "give ack, in_sync_after, check_every or topology"}
		}
		return done("group set", group, group+": "+settings(r.Body), n.GroupSet(ctx, group, r.Body))
	})
	plain(m, api.RouteGroupCheck(), func(ctx context.Context, r request[api.GroupCheckRequest]) (any, error) {
		return n.GroupCheck(ctx, r.PathValue("group"), r.Body.Deep)
	})
	plain(m, api.RouteGroupProbe(), func(ctx context.Context, r request[api.GroupProbeRequest]) (any, error) {
		return n.GroupProbe(ctx, r.PathValue("group"), r.Body)
	})
	plain(m, api.RouteGroupRecover(), func(ctx context.Context, r request[api.GroupRecover]) (any, error) {
		return n.GroupRecover(ctx, r.PathValue("group"), r.Body)
	})
	plain(m, api.RouteDirCreate(), func(ctx context.Context, r request[api.DirCreate]) (any, error) {
		req, err := dirCreate(r.Body)
		if err != nil {
			return nil, err
		}
		nodes := slices.Sorted(maps.Keys(req.Paths))
		return done("dir create", req.Name, req.Name+" is kept in step on "+strings.Join(nodes, ", "), n.DirCreate(ctx, req))
	})
	plain(m, api.RouteDirBind(), func(ctx context.Context, r request[api.DirBind]) (any, error) {
		group := r.PathValue("group")
		dir, err := bindingPath("dir bind", r.Body.Node, r.Body.Path)
		if err != nil {
			return nil, err
		}
		return done("dir bind", group, r.Body.Node+" keeps "+group+" in "+r.Body.Path, n.DirBind(ctx, group, r.Body.Node, dir))
	})
	plain(m, api.RouteDirUnbind(), func(ctx context.Context, r none) (any, error) {
		group, node := r.PathValue("group"), r.PathValue("node")
		return done("dir unbind", group, node+" no longer keeps "+group+"; its files stay where they are", n.DirUnbind(ctx, group, node))
	})
	plain(m, api.RouteDirConfirm(), func(ctx context.Context, r none) (any, error) {
		group, node := r.PathValue("group"), r.PathValue("node")
		return done("dir resume", group, group+" goes on at "+node, n.DirConfirm(ctx, group, node))
	})
}

// longOnes registers what may take as long as reading every file.
func (m *router) longOnes(n Node) {
	long(m, api.RouteDirWait(), func(ctx context.Context, r request[api.DirWaitFor], progress func(api.Progress)) (any, error) {
		req, timeout, err := waitRequest(r.Body)
		if err != nil {
			return nil, err
		}
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return n.DirWait(ctx, r.PathValue("group"), req, progress)
	})
	long(m, api.RouteNodeDrain(), func(ctx context.Context, r request[api.NodeDrain], progress func(api.Progress)) (any, error) {
		return n.NodeDrain(ctx, r.PathValue("node"), r.Body.Off, progress)
	})
	long(m, api.RouteNodeRemove(), func(ctx context.Context, r request[api.NodeRemove], progress func(api.Progress)) (any, error) {
		return n.NodeRemove(ctx, r.PathValue("node"), r.Body.Force, progress)
	})
	long(m, api.RouteDirVerify(), func(ctx context.Context, r request[api.DirVerifyRequest], progress func(api.Progress)) (any, error) {
		return n.DirVerify(ctx, r.PathValue("group"), r.Body.Repair, progress)
	})
}

func done(op, subject, text string, err error) (any, error) {
	return api.Done{Op: op, Subject: subject, Text: text}, err
}

func usage(op, subject, why, hint string) error {
	return &api.Error{Code: api.CodeUsage, Op: op, Subject: subject, Why: why, Hint: hint}
}

func required(op, what, value string) error {
	if value == "" {
		return usage(op, what, "must not be empty", "")
	}
	return nil
}

// settings says what is set to what.
func settings(s api.GroupSet) string {
	var list []string
	for _, p := range [][2]string{{"ack", s.Ack}, {"in-sync-after", s.InSyncAfter}, {"check-every", s.CheckEvery}, {"topology", s.Topology},
		{"repair-after", s.RepairAfter}} {
		if p[1] != "" {
			list = append(list, p[0]+" "+p[1])
		}
	}
	return strings.Join(list, ", ")
}

func tokenTTL(s string) (time.Duration, error) {
	if s == "" {
		return DefaultTTL, nil
	}
	ttl, err := time.ParseDuration(s)
	if err != nil {
		return 0, usage("token create", "ttl", fmt.Sprintf("%q is not a duration", s), "write for instance 30m or 24h")
	}
	if ttl <= 0 || ttl > MaxTTL {
		return 0, usage("token create", "ttl", s+" is out of range", fmt.Sprintf("choose more than 0 and at most %s", MaxTTL))
	}
	return ttl, nil
}

// dirCreate returns req with the paths as raw bytes.
func dirCreate(req api.DirCreate) (api.DirCreate, error) {
	if err := required("dir create", "name", req.Name); err != nil {
		return req, err
	}
	if len(req.Paths) == 0 {
		return req, usage("dir create", req.Name, "no node is named", "name at least one node with --on")
	}
	raw := make(map[string]string, len(req.Paths))
	for node, dir := range req.Paths {
		var err error
		if raw[node], err = bindingPath("dir create", node, dir); err != nil {
			return req, err
		}
	}
	req.Paths = raw
	return req, nil
}

// bindingPath returns dir, which is escaped, as raw bytes.
func bindingPath(op, node, dir string) (string, error) {
	if err := required(op, "node", node); err != nil {
		return "", err
	}
	raw, err := api.UnescapePath(dir)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(raw) {
		return "", usage(op, node+":"+dir, "the directory must be an absolute path", "give the whole path, from /")
	}
	return raw, nil
}

func waitRequest(req api.DirWaitFor) (api.DirWaitFor, time.Duration, error) {
	if req.Mode == "" {
		req.Mode = api.WaitAll
	}
	if !slices.Contains([]string{api.WaitAll, api.WaitQuorum, api.WaitNode}, req.Mode) {
		return req, 0, usage("dir wait", "mode", fmt.Sprintf("%q is not known", req.Mode), "use all, quorum or node")
	}
	if (req.Mode == api.WaitNode) != (req.Node != "") {
		return req, 0, usage("dir wait", "node", "goes with mode node, and mode node needs it", "")
	}
	if req.Timeout == "" {
		return req, 0, nil
	}
	timeout, err := time.ParseDuration(req.Timeout)
	if err != nil || timeout <= 0 {
		return req, 0, usage("dir wait", "timeout", fmt.Sprintf("%q is not a duration above 0", req.Timeout), "write for instance 30s")
	}
	return req, timeout, nil
}

func listRequest(r none) (api.DirList, error) {
	req := api.DirList{Limit: api.DirListMax}
	var err error
	if req.Path, err = api.UnescapePath(r.Query.Get("path")); err != nil {
		return req, err
	}
	if req.After, err = api.UnescapePath(r.Query.Get("after")); err != nil {
		return req, err
	}
	if s := r.Query.Get("limit"); s != "" {
		req.Limit, err = strconv.Atoi(s)
		if err != nil || req.Limit < 1 || req.Limit > api.DirListMax {
			return req, usage("dir ls", "limit", fmt.Sprintf("%q is not between 1 and %d", s, api.DirListMax), "")
		}
	}
	return req, nil
}
