package server

import "fmt"

// Join is errors.Join without its line breaks: these errors end up in one line
// of a client's output.
func Join(errs ...error) error {
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
