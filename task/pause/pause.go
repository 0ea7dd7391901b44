// Package pause is the first process of a pid namespace that containers share:
// it reaps what they leave, and ends the namespace on SIGTERM or SIGINT. It is
// C that runs before Go starts, so that it needs as little memory as a process
// can.
package pause

// #cgo CFLAGS: -Wall -Wextra -Werror
import "C"
