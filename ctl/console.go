package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// Runner runs commands of a guest's debug console.
type Runner interface {
	Run(ctx context.Context, args []string, out io.Writer) error
}

// Session reads commands line by line and runs them, until there are no more or
// one is `exit`. prompt, which may be empty, is printed before each. A command
// that fails says so in errs, and the next is read. each makes the context of
// one command.
type Session struct {
	Runner Runner
	Prompt string
	In     io.Reader
	Out    io.Writer
	Errs   io.Writer
	Each   func(context.Context) (context.Context, context.CancelFunc)
}

// Run runs the session.
func (s Session) Run(ctx context.Context) error {
	lines := bufio.NewScanner(s.In)
	for {
		if _, err := io.WriteString(s.Out, s.Prompt); err != nil {
			return err
		}
		if !lines.Scan() {
			return lines.Err()
		}
		args, err := split(lines.Text())
		switch {
		case err == nil && len(args) == 0:
			continue
		case err == nil && (args[0] == "exit" || args[0] == "quit"):
			return nil
		case err == nil:
			err = s.one(ctx, args)
		}
		if fatal(err) || ctx.Err() != nil {
			return err
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(s.Errs, clean(brief(err)))
		}
	}
}

func (s Session) one(ctx context.Context, args []string) error {
	ctx, cancel := s.Each(ctx)
	defer cancel()
	return s.Runner.Run(ctx, args, s.Out)
}

// fatal says whether no other command can succeed either.
func fatal(err error) bool { return errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err) }

// split takes a line apart at its spaces. What is in quotes, of either kind, is
// one word.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inside := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, inside = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if inside {
				words = append(words, word.String())
			}
			word.Reset()
			inside = false
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed: %w", quote, errdefs.ErrInvalidArgument)
	}
	if inside {
		words = append(words, word.String())
	}
	return words, nil
}
