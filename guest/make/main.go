// make builds the guest; see package guest.
//
//	make -package DIR -agent FILE -version V -out DIR
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/containerd-kuasar/containerd-kuasar/guest"
)

func main() {
	var c guest.Config
	flag.StringVar(&c.Package, "package", "", "unpacked kernel package, a `directory`")
	flag.StringVar(&c.Agent, "agent", "", "kuasar-task that was built for guests, a `file`")
	flag.StringVar(&c.Version, "version", "", "of the agent")
	flag.StringVar(&c.Out, "out", "", "`directory` of the guest")
	flag.Parse()
	m, err := guest.Build(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%s: kernel %s, agent %s, %d modules\n", c.Out, m.Kernel, m.Agent, len(m.Modules))
}
