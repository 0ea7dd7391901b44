package wasm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// Annotation of a pod that chooses its engine, among those that the handler's
// option `engines` allows.
const Annotation = "io.kuasar.wasm.engine"

// Options of a runtime handler, from its `options` table.
type Options struct {
	Engine  string   `toml:"engine"`  // of pods that choose none
	Engines []string `toml:"engines"` // that pods may choose
}

// Parse reads a handler's options.
func Parse(text []byte) (Options, error) {
	o := Options{Engine: engine.Wazero}
	table := map[string]any{}
	if err := toml.Unmarshal(text, &table); err != nil {
		return o, invalid("options of the runtime handler: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		if name != "engine" && name != "engines" {
			return o, invalid("options of the runtime handler: unknown key %q, allowed are engine, engines", name)
		}
	}
	if err := toml.Unmarshal(text, &o); err != nil {
		return o, invalid("options of the runtime handler: engine is a name and engines a list of names: %v", err)
	}
	for _, name := range append([]string{o.Engine}, o.Engines...) {
		if err := engine.Check(name); err != nil {
			return o, fmt.Errorf("options of the runtime handler: %w", err)
		}
	}
	return o, nil
}

// choose returns the engine of a pod.
func (o Options) choose(annotations map[string]string) (string, error) {
	name, ok := annotations[Annotation]
	if !ok || name == o.Engine {
		return o.Engine, nil
	}
	if !slices.Contains(o.Engines, name) {
		allowed := append([]string{o.Engine}, o.Engines...)
		return "", invalid("annotation %s: %q is no engine that this runtime handler allows; it allows %s", Annotation, name, strings.Join(allowed, ", "))
	}
	return name, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
