package artifact

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerType is of a module that stands for the layer that has it as a file. It
// begins as the type of a layer does, so that containerd takes it for one.
const layerType = imagespec.MediaTypeImageLayer + "+wasm"

// pack writes a layer with a module of some size as its one file. Equal modules
// give equal layers.
func pack(w io.Writer, module io.Reader, size int64) error {
	archive := tar.NewWriter(w)
	err := archive.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: Module[1:], Mode: 0o755, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	})
	if err != nil {
		return err
	}
	if _, err := io.CopyN(archive, module, size); err != nil {
		return err
	}
	return archive.Close()
}

// unpackLayer is the stream processor for layerType. A tar header has the
// file's size and the stream does not tell its own: it goes through a file.
func unpackLayer(_ context.Context, stream diff.StreamProcessor, _ map[string]typeurl.Any) (diff.StreamProcessor, error) {
	file, err := os.CreateTemp("", "wasm-layer-")
	if err != nil {
		return nil, fmt.Errorf("unpack module: %w", err)
	}
	size, err := io.Copy(file, stream)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err = errors.Join(err, os.Remove(file.Name())); err != nil {
		file.Close()
		return nil, fmt.Errorf("unpack module: %w", err)
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(pack(w, file, size)) }()
	return &layer{r, file}, nil
}

// layer is the stream of a packed module.
type layer struct {
	*io.PipeReader
	file *os.File
}

// MediaType implements diff.StreamProcessor.
func (l *layer) MediaType() string { return imagespec.MediaTypeImageLayer }

// Close ends the packing, whatever was read.
func (l *layer) Close() error { return errors.Join(l.PipeReader.Close(), l.file.Close()) }
