package server

import (
	"fmt"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// status is where a process is in its life. Those of the first process are
// the container's.
type status string

const (
	created status = "created" // made, waits for Start; an exec: only known by its spec
	running status = "running"
	pausing status = "pausing"
	paused  status = "paused"
	stopped status = "stopped" // exited, or failed to start
	gone    status = "gone"    // deleted: no longer found by its id
)

// next lists what each status may turn into. pausing turns back into running
// if the pause fails.
var next = map[status][]status{
	created: {running, stopped, gone},
	running: {pausing, stopped},
	pausing: {paused, running, stopped},
	paused:  {running, stopped},
	stopped: {gone},
}

func (s status) canBecome(to status) bool {
	for _, n := range next[s] {
		if n == to {
			return true
		}
	}
	return false
}

// operation is what a client asks for.
type operation string

const (
	opStart      operation = "start"
	opExec       operation = "exec in"
	opKill       operation = "kill"
	opPause      operation = "pause"
	opResume     operation = "resume"
	opUpdate     operation = "update"
	opCheckpoint operation = "checkpoint"
	opDelete     operation = "delete"
)

var allowed = map[operation][]status{
	opStart:      {created},
	opExec:       {created, running},
	opKill:       {created, running, pausing, paused},
	opPause:      {running},
	opResume:     {paused},
	opUpdate:     {created, running, pausing, paused},
	opCheckpoint: {running, paused},
	opDelete:     {created, stopped},
}

// check says why op cannot be done now, in the classes that clients of
// containerd's runc shim act on.
func (s status) check(op operation) error {
	for _, a := range allowed[op] {
		if a == s {
			return nil
		}
	}
	switch {
	case s == gone:
		return fmt.Errorf("cannot %s a deleted process: %w", op, errdefs.ErrNotFound)
	case op == opKill: // stopped
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	return fmt.Errorf("cannot %s a %s process: %w", op, s, errdefs.ErrFailedPrecondition)
}

func (s status) task() tasktypes.Status {
	switch s {
	case created:
		return tasktypes.Status_CREATED
	case running:
		return tasktypes.Status_RUNNING
	case pausing:
		return tasktypes.Status_PAUSING
	case paused:
		return tasktypes.Status_PAUSED
	case stopped, gone:
		return tasktypes.Status_STOPPED
	}
	return tasktypes.Status_UNKNOWN
}

func (s status) agent() api.Status {
	switch s {
	case created:
		return api.Status_STATUS_CREATED
	case running, pausing:
		return api.Status_STATUS_RUNNING
	case paused:
		return api.Status_STATUS_PAUSED
	case stopped, gone:
		return api.Status_STATUS_STOPPED
	}
	return api.Status_STATUS_UNSPECIFIED
}
