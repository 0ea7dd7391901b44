package sandbox

// Keys of log fields: one name per concept, everywhere.
const (
	keySandbox   = "sandbox"
	keySandboxer = "sandboxer"
)
