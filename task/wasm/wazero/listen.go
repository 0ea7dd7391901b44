package wazero

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/tetratelabs/wazero/experimental/sock"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// listening adds a process's listeners to a context, for instantiation. They are
// in the pod's network.
func listening(ctx context.Context, env []string) (context.Context, error) {
	config := sock.NewConfig()
	for _, e := range env {
		list, ok := strings.CutPrefix(e, engine.Listen+"=")
		if !ok {
			continue
		}
		for address := range strings.SplitSeq(list, ",") {
			host, port, err := split(address)
			if err != nil {
				return nil, fmt.Errorf("%s=%s: %w", engine.Listen, list, err)
			}
			config = config.WithTCPListener(host, port)
		}
		return sock.WithConfig(ctx, config), nil
	}
	return ctx, nil
}

func split(address string) (host string, port int, err error) {
	text := address
	if strings.Contains(address, ":") {
		if host, text, err = net.SplitHostPort(address); err != nil {
			return "", 0, err
		}
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // wazero puts a colon and the port behind it
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is no port", text)
	}
	return host, int(n), nil
}
