// Package sandbox is the framework of all sandboxers: it serves containerd's
// sandbox.Controller for any Backend, keeps each sandbox's state and records,
// and brings them back after a restart of the daemon.
//
// A sandbox's states:
//
//	 Create             Start             agent listens
//	────────► created ────────► starting ────────────► running ──┐
//	           │   │               │                      │      │
//	           │   │ failed        │ failed          Stop │      │ ended by itself
//	           │   │               │                      ▼      │
//	           └───┼──── Stop ─────┼─────────────────► stopping  │
//	               │               │                      │      │
//	               ▼               ▼       Shutdown       ▼      │
//	deleted ◄── deleting ◄───────────────────────────── stopped ◄┘
//
// After a restart of the daemon:
//
//	             as recorded
//	recovering ───────────────► running, stopping, stopped, deleting
//	    │  ▲
//	    ▼  │ tried again by Stop and Shutdown
//	quarantined
//
// Who starts a sandbox waits for it: one that was created or starting when the
// daemon died belongs to nobody and is deleted. A stop and a deletion that were
// under way are finished.
//
// # Quarantine
//
// A sandbox whose recovery fails is quarantined: its record is damaged or of a
// newer release, or its backend cannot reopen it. What it is made of may be
// alive and is not touched. Its state is SANDBOX_UNKNOWN, which CRI shows as
// not ready, with the reason in the verbose status. The CRI plugin stops a
// sandbox of that state before it removes anything of it (one that is
// SANDBOX_NOTREADY it takes for stopped, and tears its network down), and Stop
// and Shutdown refuse until one of three things is true: recovery succeeds when
// they try it again, the records are of a former boot of the host, or somebody
// moved the sandbox's directory away to give it up.
//
// # Records
//
// The directory of a sandbox holds two: sandbox.json says what it is and is
// written once, state.json says where it is on its way. The way up is recorded
// before it is gone: no effect without a record. The way down is recorded where
// possible, since a full disk must not keep a sandbox alive. state.json is the
// first to come and the last to go, so that a crash at any point leaves what
// recovery can finish.
package sandbox
