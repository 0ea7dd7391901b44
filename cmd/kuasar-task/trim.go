package main

import (
	"context"
	"path"
	"runtime/debug"
	"time"

	"github.com/containerd/ttrpc"
)

// idle is how long after the last start or end of a process the memory that it
// took is given back.
const idle = 3 * time.Second

// trim gives memory back to the kernel once things calm down. To start a
// container takes some MB of heap for its spec, to keep it some KB.
func trim() ttrpc.UnaryServerInterceptor {
	t := time.AfterFunc(idle, debug.FreeOSMemory)
	return func(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, call ttrpc.Method) (any, error) {
		if busy(info.FullMethod) {
			t.Reset(idle)
		}
		return call(ctx, u)
	}
}

func busy(method string) bool {
	switch path.Base(method) {
	case "Create", "Start", "Delete", "List":
		return true
	}
	return false
}
