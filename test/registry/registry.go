// Package registry is an image registry that lives in memory and listens on
// loopback. It serves what a container runtime pulls with (the read half of
// the OCI distribution API) and stands in for every registry by name: a
// mirror request carries the name of the registry it is made for as `ns`.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry holds images by name and serves them. It is safe for concurrent
// use; images may be added while it serves.
type Registry struct {
	listener net.Listener
	server   *http.Server

	mu    sync.RWMutex
	blobs map[digest.Digest]Blob
	tags  map[string]digest.Digest // "host/path:tag" to manifest
}

// Listen starts a registry on a free port of loopback.
func Listen() (*Registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the image registry: %w", err)
	}
	r := &Registry{
		listener: listener,
		blobs:    make(map[digest.Digest]Blob),
		tags:     make(map[string]digest.Digest),
	}
	r.server = &http.Server{Handler: r}
	go func() { _ = r.server.Serve(listener) }() // ends with ErrServerClosed at Close
	return r, nil
}

// URL is where the registry answers.
func (r *Registry) URL() string { return "http://" + r.listener.Addr().String() }

// Close ends the registry and every transfer from it.
func (r *Registry) Close() error {
	err := r.server.Close()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Layer is one uncompressed layer of an image: a tar archive.
type Layer []byte

// Add stores an image under a full name such as
// "registry.k8s.io/pause:3.9" and returns its manifest's digest. The same
// config and layers always give the same digest.
func (r *Registry) Add(name string, config imagespec.Image, layers ...Layer) (digest.Digest, error) {
	desc, err := r.Image(config, layers...)
	if err != nil {
		return "", fmt.Errorf("add image %s: %w", name, err)
	}
	return desc.Digest, r.Tag(name, desc)
}

// Image stores an image that has no name yet.
func (r *Registry) Image(config imagespec.Image, layers ...Layer) (imagespec.Descriptor, error) {
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = nil
	blobs := make([]Blob, len(layers))
	for i, layer := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
		blobs[i] = Blob{imagespec.MediaTypeImageLayer, layer}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	desc, err := r.Manifest(Blob{imagespec.MediaTypeImageConfig, raw}, blobs...)
	if config.OS != "" {
		desc.Platform = &config.Platform
	}
	return desc, err
}

// Blob is content of any kind.
type Blob struct {
	MediaType string
	Data      []byte
}

// Manifest stores what any manifest is made of, an artifact's for example.
func (r *Registry) Manifest(config Blob, layers ...Blob) (imagespec.Descriptor, error) {
	manifest := imagespec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: imagespec.MediaTypeImageManifest,
		Config:    r.put(config),
	}
	for _, layer := range layers {
		manifest.Layers = append(manifest.Layers, r.put(layer))
	}
	return r.encode(manifest.MediaType, manifest)
}

// Index stores an index of manifests. A registry's clients choose by the
// descriptors' platforms.
func (r *Registry) Index(manifests ...imagespec.Descriptor) (imagespec.Descriptor, error) {
	index := imagespec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: imagespec.MediaTypeImageIndex,
		Manifests: manifests,
	}
	return r.encode(index.MediaType, index)
}

// Tag names a manifest or an index.
func (r *Registry) Tag(name string, desc imagespec.Descriptor) error {
	if i := strings.LastIndex(name, ":"); i < 0 || !strings.Contains(name, "/") || strings.Contains(name[i:], "/") {
		return fmt.Errorf("add image %q: want host/path:tag", name)
	}
	r.mu.Lock()
	r.tags[name] = desc.Digest
	r.mu.Unlock()
	return nil
}

// Digest is what a name stands for; empty if there is no such name.
func (r *Registry) Digest(name string) digest.Digest {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.tags[name]
}

// Names lists the images, tags included.
func (r *Registry) Names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	names := make([]string, 0, len(r.tags))
	for name := range r.tags {
		names = append(names, name)
	}
	return names
}

func (r *Registry) encode(mediaType string, v any) (imagespec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	return r.put(Blob{mediaType, raw}), nil
}

func (r *Registry) put(b Blob) imagespec.Descriptor {
	id := digest.FromBytes(b.Data)
	r.mu.Lock()
	r.blobs[id] = b
	r.mu.Unlock()
	return imagespec.Descriptor{MediaType: b.MediaType, Digest: id, Size: int64(len(b.Data))}
}

// ServeHTTP answers GET and HEAD of /v2/, manifests by tag or digest, and
// blobs.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", req.URL.Path)
		return
	}
	if path == "" {
		_, _ = w.Write([]byte("{}"))
		return
	}
	if repository, reference, ok := cut(path, "/manifests/"); ok {
		r.serveManifest(w, req, repository, reference)
		return
	}
	if _, id, ok := cut(path, "/blobs/"); ok {
		r.serveBlob(w, req, digest.Digest(id), "BLOB_UNKNOWN")
		return
	}
	refuse(w, http.StatusNotFound, "NAME_UNKNOWN", path)
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, repository, reference string) {
	id := digest.Digest(reference)
	if id.Validate() != nil {
		host := req.URL.Query().Get("ns")
		if host == "" {
			host = req.Host
		}
		r.mu.RLock()
		id = r.tags[host+"/"+repository+":"+reference]
		r.mu.RUnlock()
	}
	r.serveBlob(w, req, id, "MANIFEST_UNKNOWN")
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, id digest.Digest, code string) {
	r.mu.RLock()
	b, ok := r.blobs[id]
	r.mu.RUnlock()
	if !ok {
		refuse(w, http.StatusNotFound, code, req.URL.Path)
		return
	}
	w.Header().Set("Content-Type", b.MediaType)
	w.Header().Set("Docker-Content-Digest", id.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b.Data)))
	if req.Method == http.MethodGet {
		_, _ = w.Write(b.Data) // the client went away
	}
}

// cut splits at the last separator: a repository's name has slashes too.
func cut(path, separator string) (before, after string, ok bool) {
	i := strings.LastIndex(path, separator)
	if i < 0 {
		return "", "", false
	}
	return path[:i], path[i+len(separator):], true
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": code, "message": message}},
	})
}
