// Package sandbox is the framework of all sandboxers: it serves containerd's
// sandbox.Controller for any Backend, keeps each sandbox's state and record,
// and brings them back after a restart of the daemon.
//
// A sandbox's states:
//
//	 Create        Start          (agent listens)
//	────────► created ──► starting ──────────► running
//	             │            │ │                 │ (ended by itself, or Stop)
//	             │            │ └── Stop ─────────┤
//	             │     (error)│                   ▼
//	             └── Stop ────┼───────────────► stopped
//	                          ▼                   │ Shutdown
//	                       deleting ◄─────────────┘
//
//	quarantined: recovery failed; nothing is touched until Shutdown
//
// The record on disk always names the state that is about to be reached, so a
// crash at any point leaves what recovery can finish or clean up.
package sandbox
