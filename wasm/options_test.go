package wasm

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		toml, annotation string
		want, says       string
	}{
		"none":                   {"", "", "wazero", ""},
		"engine":                 {`engine = "wasmtime"`, "", "wasmtime", ""},
		"annotation of the same": {`engine = "wasmtime"`, "wasmtime", "wasmtime", ""},
		"allowed":                {`engines = ["wasmtime", "wasmedge"]`, "wasmedge", "wasmedge", ""},
		"not allowed":            {`engines = ["wasmtime"]`, "wasmedge", "", "it allows wazero, wasmtime"},
		"none is allowed":        {"", "wasmtime", "", "it allows wazero"},
		"unknown engine":         {`engine = "v8"`, "", "", "wazero, wasmtime, wasmedge"},
		"unknown in the list":    {`engines = ["v8"]`, "", "", `"v8"`},
		"unknown key":            {`Engine = "wazero"`, "", "", `unknown key "Engine", allowed are engine, engines`},
		"wrong type":             {`engine = 1`, "", "", "engine is a name"},
		"no TOML":                {`engine`, "", "", "options of the runtime handler"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Parse([]byte(c.toml))
			var got string
			if err == nil {
				annotations := map[string]string{}
				if c.annotation != "" {
					annotations[Annotation] = c.annotation
				}
				got, err = o.choose(annotations)
			}
			switch {
			case c.says == "" && (err != nil || got != c.want):
				t.Errorf("got %q, %v", got, err)
			case c.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says)):
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
