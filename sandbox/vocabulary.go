package sandbox

// Keys of log fields: one name per concept, everywhere.
const (
	keySandbox   = "sandbox"   // its id
	keySandboxer = "sandboxer" // its name in containerd's configuration
	keyState     = "state"
	keyStatus    = "status" // of an exit
	keyOperation = "operation"
	keyStack     = "stack"
	keyCount     = "count"
	keyDuration  = "duration"
)

// Topics of the events about sandboxes, those of containerd's own sandbox
// service (plugins/services/sandbox). Who calls us through that service gets
// each of them twice; the CRI plugin does not, and publishes none.
const (
	topicCreate = "/sandboxes/create" // events.SandboxCreate
	topicStart  = "/sandboxes/start"  // events.SandboxStart
	topicExit   = "/sandboxes/exit"   // events.SandboxExit
)
