// Package child turns the agent's binary into a container's first process.
//
// libcontainer executes this binary again for each process it starts, and all
// packages of the binary are initialised before main. So this happens while
// they are: Go initialises packages in the order of their import paths as far
// as their imports allow, which puts this one, whose imports are libcontainer's
// alone, before what only a serving agent needs (protobuf, gRPC's status).
package child

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before Go starts
)

// Arg is the first argument that makes a process one.
const Arg = "init"

func init() {
	if len(os.Args) > 1 && os.Args[1] == Arg {
		libcontainer.Init() // never returns
	}
}
