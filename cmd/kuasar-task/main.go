// kuasar-task is the agent: one worker for all pods of a host, PID 1 of a
// guest, and the re-exec child of every container it starts.
package main

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // a container's first process: never returns
	}
}

func main() {}
