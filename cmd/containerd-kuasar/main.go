// containerd-kuasar is containerd with every Kuasar sandboxer compiled in.
package main

import (
	"context"
	"fmt"
	"os"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/cmd/containerd/command"

	"github.com/containerd-kuasar/containerd-kuasar/plugins"
)

func main() {
	err := plugins.Register()
	if err == nil {
		err = command.App().Run(context.Background(), os.Args)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "containerd-kuasar:", err)
		os.Exit(1)
	}
}
