// privs prints its effective user id. Installed setuid root it shows whether
// a container may gain privileges by exec.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
