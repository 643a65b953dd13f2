package api

import (
	"net/http"
	"net/url"
	"strings"
)

// Media types of the API.
const (
	MediaJSON   = "application/json"
	MediaStream = "application/x-ndjson"
)

// DefaultPort of the HTTP API, on loopback.
const DefaultPort = 7421

// MaxRequest bounds a request's body, in bytes.
const MaxRequest = 1 << 20

// Route is one operation of the HTTP API. Request and Response are zero values of the body types, for
// documentation and tests; a GET's Request travels as a query.
type Route struct {
	Method, Path      string // Path in net/http's pattern syntax
	Request, Response any
	Streams           bool // answers in MediaStream when asked by Accept
}

// Pattern is the route in net/http's form.
func (r Route) Pattern() string { return r.Method + " " + r.Path }

// URL fills the path's placeholders, in order, with escaped values. It panics if their number differs:
// that is a mistake in the caller's source.
func (r Route) URL(values ...string) string {
	parts := strings.Split(r.Path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "{") {
			parts[i] = url.PathEscape(values[0])
			values = values[1:]
		}
	}
	if len(values) != 0 {
		panic("api: too many values for " + r.Path)
	}
	return strings.Join(parts, "/")
}

// The routes. Each is a function so that none can be changed.

func RouteVersion() Route {
	return Route{Method: http.MethodGet, Path: "/v1/version", Request: None{}, Response: Version{}}
}

func RouteStatus() Route {
	return Route{Method: http.MethodGet, Path: "/v1/status", Request: None{}, Response: Status{}}
}

func RouteNodes() Route {
	return Route{Method: http.MethodGet, Path: "/v1/nodes", Request: None{}, Response: []Node{}}
}

func RouteLevel() Route {
	return Route{Method: http.MethodGet, Path: "/v1/level", Request: None{}, Response: ClusterLevel{}}
}

func RouteLevelRaise() Route {
	return Route{Method: http.MethodPost, Path: "/v1/level", Request: LevelRaise{}, Response: LevelRaised{}}
}

func RouteTokens() Route {
	return Route{Method: http.MethodGet, Path: "/v1/tokens", Request: None{}, Response: []Token{}}
}

func RouteTokenCreate() Route {
	return Route{Method: http.MethodPost, Path: "/v1/tokens", Request: TokenCreate{}, Response: Token{}}
}

func RouteTokenRevoke() Route {
	return Route{Method: http.MethodDelete, Path: "/v1/tokens/{id}", Request: None{}, Response: Done{}}
}

func RouteGroups() Route {
	return Route{Method: http.MethodGet, Path: "/v1/groups", Request: None{}, Response: []Group{}}
}

func RouteGroup() Route {
	return Route{Method: http.MethodGet, Path: "/v1/groups/{group}", Request: None{}, Response: Group{}}
}

func RouteGroupTransfer() Route {
	return Route{Method: http.MethodPost, Path: "/v1/groups/{group}/transfer", Request: GroupTransfer{}, Response: Done{}}
}

func RouteGroupMember() Route {
	return Route{Method: http.MethodPost, Path: "/v1/groups/{group}/members", Request: GroupMember{}, Response: Done{}}
}

func RouteGroupDelete() Route {
	return Route{Method: http.MethodDelete, Path: "/v1/groups/{group}", Request: None{}, Response: Done{}}
}

func RouteNodeDrain() Route {
	return Route{Method: http.MethodPost, Path: "/v1/nodes/{node}/drain", Request: NodeDrain{}, Response: NodeChange{}, Streams: true}
}

func RouteNodeRemove() Route {
	return Route{Method: http.MethodPost, Path: "/v1/nodes/{node}/remove", Request: NodeRemove{}, Response: NodeChange{}, Streams: true}
}

func RouteClusterSet() Route {
	return Route{Method: http.MethodPost, Path: "/v1/cluster/settings", Request: ClusterSet{}, Response: Done{}}
}

func RouteGroupSet() Route {
	return Route{Method: http.MethodPost, Path: "/v1/groups/{group}/settings", Request: GroupSet{}, Response: Done{}}
}

func RouteGroupRecover() Route {
	return Route{Method: http.MethodPost, Path: "/v1/groups/{group}/recover", Request: GroupRecover{}, Response: GroupRecovered{}}
}

func RouteGroupProbe() Route {
	return Route{Method: http.MethodPost, Path: "/v1/groups/{group}/probe", Request: GroupProbeRequest{}, Response: GroupProbe{}}
}

func RouteGroupCheck() Route {
	return Route{Method: http.MethodPost, Path: "/v1/groups/{group}/check", Request: GroupCheckRequest{}, Response: GroupCheck{}}
}

func RouteGroupToken() Route {
	return Route{Method: http.MethodGet, Path: "/v1/groups/{group}/tokens/{token}", Request: None{}, Response: GroupToken{}}
}

// RouteBackup is answered by the backup itself, in MediaBackup.
func RouteBackup() Route {
	return Route{Method: http.MethodPost, Path: "/v1/backup", Request: BackupCreate{}, Response: None{}}
}

// RouteRestore takes a body in MediaBackup: Restore as one line of JSON, then what the backup holds of the group.
func RouteRestore() Route {
	return Route{Method: http.MethodPost, Path: "/v1/restore", Request: Restore{}, Response: Restored{}}
}

func RouteDirCreate() Route {
	return Route{Method: http.MethodPost, Path: "/v1/dirs", Request: DirCreate{}, Response: Done{}}
}

func RouteDirStatus() Route {
	return Route{Method: http.MethodGet, Path: "/v1/dirs/{group}", Request: None{}, Response: DirStatus{}}
}

func RouteDirBind() Route {
	return Route{Method: http.MethodPost, Path: "/v1/dirs/{group}/nodes", Request: DirBind{}, Response: Done{}}
}

func RouteDirUnbind() Route {
	return Route{Method: http.MethodDelete, Path: "/v1/dirs/{group}/nodes/{node}", Request: None{}, Response: Done{}}
}

func RouteDirConfirm() Route {
	return Route{Method: http.MethodPost, Path: "/v1/dirs/{group}/nodes/{node}/confirm", Request: None{}, Response: Done{}}
}

func RouteDirList() Route {
	return Route{Method: http.MethodGet, Path: "/v1/dirs/{group}/entries", Request: DirList{}, Response: DirEntries{}}
}

func RouteDirConflicts() Route {
	return Route{Method: http.MethodGet, Path: "/v1/dirs/{group}/conflicts", Request: None{}, Response: []Conflict{}}
}

func RouteDirWait() Route {
	return Route{Method: http.MethodPost, Path: "/v1/dirs/{group}/wait", Request: DirWaitFor{}, Response: DirWait{}, Streams: true}
}

func RouteDirVerify() Route {
	return Route{Method: http.MethodPost, Path: "/v1/dirs/{group}/verify", Request: DirVerifyRequest{}, Response: DirVerify{}, Streams: true}
}

// Routes lists all of them.
func Routes() []Route {
	return []Route{
		RouteVersion(), RouteStatus(), RouteNodes(), RouteLevel(), RouteLevelRaise(),
		RouteTokens(), RouteTokenCreate(), RouteTokenRevoke(),
		RouteGroups(), RouteGroup(), RouteGroupTransfer(), RouteGroupProbe(), RouteGroupToken(), RouteGroupCheck(),
		RouteGroupMember(), RouteGroupDelete(), RouteNodeDrain(), RouteNodeRemove(),
		RouteClusterSet(), RouteGroupSet(), RouteGroupRecover(), RouteBackup(), RouteRestore(),
		RouteDirCreate(), RouteDirStatus(), RouteDirBind(), RouteDirUnbind(), RouteDirConfirm(),
		RouteDirList(), RouteDirConflicts(), RouteDirWait(), RouteDirVerify(),
	}
}
