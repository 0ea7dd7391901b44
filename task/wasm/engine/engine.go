// Package engine is what the daemon tells the worker of a Wasm container:
// which engine runs it.
package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
)

// URL is the type of a task's options that make it a Wasm container. Their
// value is JSON.
const URL = "kuasar.wasm.v1.Options"

// The engines.
const (
	Wazero   = "wazero"   // in kuasar-task
	Wasmtime = "wasmtime" // in kuasar-wasmtime
	WasmEdge = "wasmedge" // the distribution's program
)

// Names of all engines, the default first.
var Names = []string{Wazero, Wasmtime, WasmEdge}

// Listen is the environment variable of a container that names the TCP addresses
// where its module takes connections, separated by commas: "8080",
// "127.0.0.1:8080,9090". WASI preview 1 can accept connections, but neither open
// sockets nor say where they are: the module finds each listener as a descriptor,
// in that order, from 4 on. Only Wazero has that.
const Listen = "KUASAR_LISTEN"

// Check finds names of no engine.
func Check(name string) error {
	if slices.Contains(Names, name) {
		return nil
	}
	return fmt.Errorf("unknown engine %q, there are %s: %w", name, strings.Join(Names, ", "), errdefs.ErrInvalidArgument)
}

// Options of one container.
type Options struct {
	Engine        string `json:"engine"`
	Program       string `json:"program,omitempty"` // kuasar-wasmtime or wasmedge
	Cache         string `json:"cache"`             // directory of compiled modules
	CacheSize     int64  `json:"cacheSize"`         // limit in bytes; 0 is the default
	SystemdCgroup bool   `json:"systemdCgroup,omitempty"`
}

// Any is what a task's options are sent as.
func (o Options) Any() (*anypb.Any, error) {
	b, err := json.Marshal(o)
	return &anypb.Any{TypeUrl: URL, Value: b}, err
}

// Parse reads them.
func Parse(a *anypb.Any) (Options, error) {
	var o Options
	if err := json.Unmarshal(a.GetValue(), &o); err != nil {
		return o, fmt.Errorf("options of a Wasm container: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return o, Check(o.Engine)
}
