package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/test/registry"
)

// epoch is the time of every file: equal content gives equal digests.
var epoch = time.Unix(0, 0).UTC()

// file is one entry of a layer. A path that ends in a slash is a directory;
// link makes a hard link and symlink a symbolic one.
type file struct {
	path    string
	mode    int64 // 0 is 0755 for directories and 0644 for files
	data    []byte
	link    string
	symlink string
}

// layer packs files into a tar archive in the given order.
func layer(files []file) (registry.Layer, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, f := range files {
		if err := w.WriteHeader(f.header()); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	return buffer.Bytes(), nil
}

func (f file) header() *tar.Header {
	h := &tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.data)), ModTime: epoch, Typeflag: tar.TypeReg}
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, f.link
	case f.symlink != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.symlink
	case strings.HasSuffix(f.path, "/"):
		h.Typeflag = tar.TypeDir
		if h.Mode == 0 {
			h.Mode = 0o755
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	return h
}
