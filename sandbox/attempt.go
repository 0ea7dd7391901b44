package sandbox

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// attempt makes a call of the backend. Its panic becomes an error: the daemon
// must not die of it.
func attempt[T any](ctx context.Context, id, operation string, call func() (T, error)) (value T, err error) {
	defer func() {
		if r := recover(); r != nil {
			log.G(ctx).WithFields(log.Fields{keySandbox: id, keyOperation: operation, keyStack: string(debug.Stack())}).Error("backend panicked")
			err = fmt.Errorf("%s: the backend panicked: %v: %w", operation, r, errdefs.ErrInternal)
		}
	}()
	return call()
}

// try is attempt for a call that returns nothing but an error.
func try(ctx context.Context, id, operation string, call func(context.Context) error) error {
	_, err := attempt(ctx, id, operation, func() (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// ask is attempt for a call that cannot fail. A panic leaves the zero value.
func ask[T any](ctx context.Context, id, operation string, call func() T) T {
	value, _ := attempt(ctx, id, operation, func() (T, error) { return call(), nil })
	return value
}
