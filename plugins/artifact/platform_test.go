package artifact

import (
	"testing"

	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestChoose(t *testing.T) {
	linux, arm, wasi, p1, p2 := "linux/amd64", "linux/arm64", "wasi/wasm", "wasip1/wasm", "wasip2/wasm"
	for name, test := range map[string]struct {
		has, wants []string
		prefer     bool
		want       string // "" is the stock choice
	}{
		"host's":                     {[]string{linux, arm}, []string{linux}, false, ""},
		"host's beside Wasm":         {[]string{wasi, linux}, []string{linux}, false, ""},
		"Wasm alone":                 {[]string{wasi}, []string{linux}, false, wasi},
		"Wasm beside another host's": {[]string{arm, wasi}, []string{linux}, false, wasi},
		"Wasm for a Wasm pod":        {[]string{linux, wasi}, []string{linux}, true, wasi},
		"host's for a Wasm pod":      {[]string{linux, arm}, []string{linux}, true, ""},
		"Wasm as asked":              {[]string{linux, wasi, p1}, []string{wasi}, false, wasi},
		"preview 2 as asked":         {[]string{linux, p1, p2}, []string{p2}, false, p2},
		"preview 1 before 2":         {[]string{p2, wasi, p1}, []string{linux}, false, p1},
		"both as asked":              {[]string{linux, wasi}, []string{linux, wasi}, false, ""},
		"all":                        {[]string{linux, wasi}, nil, false, ""},
		"none":                       {[]string{arm}, []string{linux}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var manifests []imagespec.Descriptor
			for _, p := range test.has {
				platform := platforms.MustParse(p)
				manifests = append(manifests, imagespec.Descriptor{MediaType: imagespec.MediaTypeImageManifest, Platform: &platform})
			}
			manifests = append(manifests, imagespec.Descriptor{MediaType: "application/vnd.example", Platform: &imagespec.Platform{OS: "wasi", Architecture: "wasm"}})
			var wants []imagespec.Platform
			for _, p := range test.wants {
				wants = append(wants, platforms.MustParse(p))
			}
			got := ""
			if m, ok := choose(manifests, wants, test.prefer); ok {
				got = platforms.Format(*m.Platform)
			}
			if got != test.want {
				t.Errorf("chose %q, want %q", got, test.want)
			}
		})
	}
}
