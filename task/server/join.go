package server

import "fmt"

// join is errors.Join without its line breaks: these errors end up in one line
// of a client's output.
func join(errs ...error) error {
	var err error
	for _, e := range errs {
		switch {
		case e == nil:
		case err == nil:
			err = e
		default:
			err = fmt.Errorf("%w; %w", err, e)
		}
	}
	return err
}
