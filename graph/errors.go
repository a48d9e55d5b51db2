package graph

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// The errors that callers tell apart with errors.Is.
var (
	// ErrClosed is returned by every method of a DB that was closed.
	ErrClosed = errors.New("the graph is closed")
	// ErrAlreadyApplied is returned by Commit and CommitConfiguration for a
	// revision at or below the applied one. Nothing was changed; a log that is
	// replayed may skip the entry.
	ErrAlreadyApplied = errors.New("revision is already applied")
	// ErrRevisionAhead means that a revision is newer than what this DB applied.
	ErrRevisionAhead = errors.New("revision is not applied yet")
	// ErrRevisionGone means that a revision is older than the history that is
	// kept; the error is a *RevisionGoneError.
	ErrRevisionGone = errors.New("revision is older than the history that is kept")
	// ErrInvalidPosition means that the position given to Read was not made by
	// Read for the same filter.
	ErrInvalidPosition = errors.New("position does not belong to this read")
	// ErrSnapshotsOpen means that a DB cannot be closed yet. Nothing was changed.
	ErrSnapshotsOpen = errors.New("snapshots are still open")
	// ErrExhausted means that a store has no number left for one more name.
	ErrExhausted = errors.New("no number is left")
)

// A RevisionGoneError says what was asked for and what is the oldest that can
// be read.
type RevisionGoneError struct {
	// Revision is the one that was asked for; zero when a moment was, which is
	// At then.
	Revision Revision
	At       Instant
	// Oldest is the oldest revision kept, OldestAt its stamp.
	Oldest   Revision
	OldestAt Instant
	// Log says that changes were asked for, from the revision or moment on, and
	// that Oldest is of the change log; else it is about a state.
	Log bool
}

// Error says both, the oldest with its time.
func (e *RevisionGoneError) Error() string {
	asked := fmt.Sprintf("revision %d", e.Revision)
	if e.Revision == 0 && e.At != 0 {
		asked = "the state at " + e.At.String()
	}
	if e.Log {
		asked = fmt.Sprintf("the changes from revision %d on", e.Revision)
		if e.Revision == 0 && e.At != 0 {
			asked = "the changes since " + e.At.String()
		}
	}
	oldest := fmt.Sprintf("revision %d", e.Oldest)
	if e.OldestAt != 0 {
		oldest += " of " + e.OldestAt.String()
	}
	if e.Log {
		return fmt.Sprintf("%s are kept no more: the oldest that are kept are of %s", asked, oldest)
	}
	return fmt.Sprintf("%s is older than the history that is kept: the oldest is %s", asked, oldest)
}

// Unwrap returns ErrRevisionGone.
func (e *RevisionGoneError) Unwrap() error { return ErrRevisionGone }

// A FormatError means that a directory was written in a format that this program
// does not know.
type FormatError struct {
	// Found is the version in the directory, Supported the one that this program
	// writes.
	Found, Supported uint64
}

// Error names both versions.
func (e *FormatError) Error() string {
	return fmt.Sprintf("the directory has data format version %d, but this program opens versions %d, %d, %d and %d only: "+
		"use a program of the other version to export and this one to import", e.Found, oldestFormatVersion, storesVersion, countersVersion, e.Supported)
}

// An InvalidError says what is wrong with something that came from outside.
type InvalidError struct {
	// Field names the part that is wrong, such as "object id".
	Field string
	// Value is what was given, cut to a length that can be printed.
	Value string
	// Problem says what is wrong with it.
	Problem string
	// Allowed says what would be right; empty when Problem says it all.
	Allowed string
}

// Error prints all fields in one line.
func (e *InvalidError) Error() string {
	var b strings.Builder
	b.WriteString(e.Field)
	if e.Value != "" {
		fmt.Fprintf(&b, " %q", e.Value)
	}
	b.WriteString(": ")
	b.WriteString(e.Problem)
	if e.Allowed != "" {
		b.WriteString("; allowed: ")
		b.WriteString(e.Allowed)
	}
	return b.String()
}

// invalidValueShown bounds how many bytes of a wrong value an error repeats.
const invalidValueShown = 80

func invalid(field, value, problem, allowed string) *InvalidError {
	if len(value) > invalidValueShown {
		value = strings.ToValidUTF8(value[:invalidValueShown], "") + "..."
	}
	return &InvalidError{Field: field, Value: value, Problem: problem, Allowed: allowed}
}

// errCorrupt marks records that were read back in a form that no Commit writes.
var errCorrupt = errors.New("the graph's data is damaged")

// corruptf returns an error that IsCorruptionError recognises.
func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errCorrupt, fmt.Sprintf(format, args...))
}

// IsCorruptionError reports whether err means that the data on disk is damaged:
// by a checksum that failed in Pebble, or by a record that cannot be decoded. A
// node that meets one must stop, for its answers can no longer be trusted.
func IsCorruptionError(err error) bool {
	return errors.Is(err, errCorrupt) || pebble.IsCorruptionError(err)
}

// Damage makes an error that IsCorruptionError recognises fit to be shown: it
// says in one line, however it is printed, what was found, and in which file of
// which directory where Pebble knows. Any other error, and one that Damage made,
// is returned as it is.
func Damage(err error) error {
	var told *damageError
	if !IsCorruptionError(err) || errors.As(err, &told) {
		return err
	}
	text := err.Error()
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		text = strings.ReplaceAll(text, corruptionCarrier, "")
		if !strings.Contains(text, info.Path) {
			text = strings.TrimSpace(text) + ", in " + info.Path
		}
	}
	if !errors.Is(err, errCorrupt) {
		text = errCorrupt.Error() + ": " + text
	}
	return &damageError{text: strings.Join(strings.Fields(text), " "), cause: err}
}

// corruptionCarrier is what Pebble's errors say in place of the details that they
// carry for programs.
const corruptionCarrier = "<corruption detail carrier>"

// A damageError is an error in other words. Printing it with %+v, as slog does,
// shows no stack of the cause.
type damageError struct {
	text  string
	cause error
}

// Error returns the words.
func (e *damageError) Error() string { return e.text }

// Unwrap returns the cause.
func (e *damageError) Unwrap() error { return e.cause }
