package api

// Code classifies an Error; each has one exit code and one HTTP status (see codes).
type Code string

const (
	CodeFailed      Code = "failed"
	CodeUsage       Code = "usage"
	CodePartial     Code = "partial" // differences found, or only part was done
	CodeNotFound    Code = "not_found"
	CodeConflict    Code = "conflict"
	CodeDenied      Code = "denied"
	CodeUnavailable Code = "unavailable" // retry may help; also timeouts
	CodeDamage      Code = "damage"
)

// Error is the one error shape that crosses Lockstep's doors.
type Error struct {
	Code    Code   `json:"code"`
	Op      string `json:"op,omitempty"`      // what was tried: "join", "dir bind"
	Subject string `json:"subject,omitempty"` // on what: a node, a path, a key
	Why     string `json:"why"`
	Hint    string `json:"hint,omitempty"` // what to do next
}
