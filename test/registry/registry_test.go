package registry

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

func serve(t *testing.T) (*Registry, digest.Digest) {
	t.Helper()
	r, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	id, err := r.Add("example.org/a/b:1", imagespec.Image{}, Layer("layer"))
	if err != nil {
		t.Fatal(err)
	}
	return r, id
}

func TestServe(t *testing.T) {
	r, id := serve(t)
	layer := digest.FromString("layer").String()
	for _, test := range []struct {
		name, method, path string
		status             int
		mediaType          string
	}{
		{"ping", "GET", "/v2/", 200, ""},
		{"by tag through a mirror", "GET", "/v2/a/b/manifests/1?ns=example.org", 200, imagespec.MediaTypeImageManifest},
		{"head by tag", "HEAD", "/v2/a/b/manifests/1?ns=example.org", 200, imagespec.MediaTypeImageManifest},
		{"by digest", "GET", "/v2/a/b/manifests/" + id.String(), 200, imagespec.MediaTypeImageManifest},
		{"blob", "GET", "/v2/a/b/blobs/" + layer, 200, imagespec.MediaTypeImageLayer},
		{"other tag", "GET", "/v2/a/b/manifests/2?ns=example.org", 404, ""},
		{"other registry", "GET", "/v2/a/b/manifests/1?ns=example.com", 404, ""},
		{"other digest", "GET", "/v2/a/b/blobs/sha256:00", 404, ""},
		{"not the API", "GET", "/v1/", 404, ""},
		{"tags", "GET", "/v2/a/b/tags/list", 404, ""},
		{"push", "PUT", "/v2/a/b/manifests/1", 405, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, r.URL()+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != test.status {
				t.Errorf("status %d, want %d", resp.StatusCode, test.status)
			}
			if got := resp.Header.Get("Content-Type"); test.mediaType != "" && got != test.mediaType {
				t.Errorf("media type %q, want %q", got, test.mediaType)
			}
		})
	}
}

func TestManifestNamesConfigAndLayers(t *testing.T) {
	r, id := serve(t)
	resp, err := http.Get(r.URL() + "/v2/a/b/manifests/" + id.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(raw) != id {
		t.Error("the manifest's digest is not that of its bytes")
	}
	var manifest imagespec.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	for _, desc := range append(manifest.Layers, manifest.Config) {
		resp, err := http.Head(r.URL() + "/v2/a/b/blobs/" + desc.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ContentLength != desc.Size {
			t.Errorf("blob %s: status %d, length %d, want 200 and %d", desc.Digest, resp.StatusCode, resp.ContentLength, desc.Size)
		}
	}
}

func TestAddRefusesNames(t *testing.T) {
	r, _ := serve(t)
	for _, name := range []string{"", "busybox", "example.org/busybox", "localhost:5000/busybox"} {
		if _, err := r.Add(name, imagespec.Image{}); err == nil {
			t.Errorf("Add(%q) is accepted", name)
		}
	}
}
