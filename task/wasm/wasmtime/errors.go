package wasmtime

import "strings"

// brief makes one line of an error of the engine: its first, and what it says
// was the cause. Between them is a backtrace, whose addresses help nobody.
func brief(message string) string {
	head, rest, _ := strings.Cut(message, "\n")
	head = strings.TrimSuffix(strings.TrimSpace(head), " at wasm backtrace:")
	parts := []string{head}
	_, causes, _ := strings.Cut(rest, "Caused by:\n")
	for line := range strings.Lines(causes) {
		line = strings.TrimSpace(line)
		if line == "" {
			break
		}
		if number, cause, ok := strings.Cut(line, ": "); ok && strings.Trim(number, "0123456789") == "" {
			line = cause
		}
		parts = append(parts, line)
	}
	return strings.Join(parts, ": ")
}
