package api

import (
	"net/http"
	"strings"
)

// Code classifies an Error; each has one exit code, one HTTP status and one short text (see Codes).
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
	CodeFull        Code = "full" // a disk has no room; nothing was done
	CodeInterrupted Code = "interrupted"
)

// CodeInfo is what the outside sees of a Code.
type CodeInfo struct {
	Code   Code
	Exit   int    // exit status of the command line
	Status int    // HTTP status
	EN, ZH string // short text
}

// Codes returns the one table of codes.
func Codes() []CodeInfo {
	return []CodeInfo{
		{CodeFailed, 1, http.StatusInternalServerError, "failed", "失败"},
		{CodeUsage, 2, http.StatusBadRequest, "wrong usage", "用法错误"},
		{CodePartial, 3, http.StatusUnprocessableEntity, "differences found, or only partly done", "存在差异，或仅部分完成"},
		{CodeNotFound, 4, http.StatusNotFound, "not found", "未找到"},
		{CodeConflict, 5, http.StatusConflict, "conflicts with what is there", "与现有状态冲突"},
		{CodeDenied, 6, http.StatusForbidden, "denied", "被拒绝"},
		{CodeUnavailable, 7, http.StatusServiceUnavailable, "unavailable or timed out; a retry may help", "不可用或超时，可重试"},
		{CodeDamage, 8, http.StatusConflict, "damage found", "发现数据损坏"},
		{CodeFull, 9, http.StatusInsufficientStorage, "disk full; nothing was done", "磁盘已满，未做任何更改"},
		{CodeInterrupted, 130, 499, "interrupted", "已中断"},
	}
}

// Info returns c's row of the table; an unknown code (from a newer server) is treated as CodeFailed.
func (c Code) Info() CodeInfo {
	table := Codes()
	for _, row := range table {
		if row.Code == c {
			return row
		}
	}
	return table[0]
}

// Error is the one error shape that crosses Lockstep's doors.
type Error struct {
	Code    Code   `json:"code"`
	Op      string `json:"op,omitempty"`      // what was tried: "join", "dir bind"
	Subject string `json:"subject,omitempty"` // on what: a node, a path, a key
	Why     string `json:"why"`
	Hint    string `json:"hint,omitempty"` // what to do next
}

// Error says what was tried, on what, and why it did not work. The hint is not part of it: a person is
// shown it on a line of its own.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Subject != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Subject)
	}
	why := e.Why
	if why == "" {
		why = e.Code.Info().EN
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(why)
	return b.String()
}

// Is makes errors.Is(err, &Error{Code: c}) true for every error of code c.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && *t == Error{Code: t.Code} && t.Code == e.Code
}
