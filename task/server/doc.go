// Package server is the agent: it serves containerd's Task API and the verbs of
// task/api for the containers of all namespaces. It owns their processes'
// records, stdio, exit codes and events; what makes and changes containers is
// behind Runtime.
//
//	                 Pause ─► pausing ─► paused
//	                   │         │ failed  │ Resume
//	Create ─► created ─► running ◄─────────┘
//	             │  Start   │ exit (from any of them)
//	             │ exit     ▼
//	             └─────► stopped ─► gone
//	                            Delete
//
// # Who does what when
//
// A call that changes a process has its turn while it runs, so calls for one
// process come one after the other, and those for others at any time. Turns
// are waited for no longer than the caller does. Mutexes only guard fields.
// Kill, State, Stats and the other reading calls need no turn: they answer
// while another call is stuck in the kernel.
//
// An exit is handled in its own turn too, hence after the Start that made the
// process. First processes exit last: what is left in the container is killed
// if it has no pid namespace of its own, and the exits of its execs are told
// before.
//
// # What survives
//
// Each process has a record that is written before what it announces is done:
// "created" without a pid before Create, "running" before Start, "stopped"
// before the exit is told. Restore finishes what is under way in one
// direction: a creation is undone, a start is done.
package server
