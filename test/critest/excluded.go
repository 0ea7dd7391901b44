package critest

// excluded are the cases that may fail or be skipped although the handler
// they are compared with passes, and those that fail with every handler:
// by full name, with the cause. A case that passes must not be here.
var excluded = map[string]string{}
