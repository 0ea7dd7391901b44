package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

// serve answers each connection to the listener that it was given, as the
// descriptor that its argument is, with "served".
func serve(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("serve needs the number of a descriptor")
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	if err != nil {
		return err
	}
	if err := show("listening"); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if _, err := io.WriteString(c, "served\n"); err != nil {
			return err
		}
		// wazero ends a connection when it is shut down, not when it is closed.
		if shut, ok := c.(interface{ CloseWrite() error }); ok {
			_ = shut.CloseWrite()
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
}
