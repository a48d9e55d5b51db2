package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// raftLogger puts Raft's lines onto slog. Raft speaks of every snapshot and
// every election at levels that suit a demonstration: an ordinary start of a
// single node warns of a missed heartbeat. So its warnings are information
// here, all below is debug, and the node itself says who leads.
type raftLogger struct {
	// The null logger answers for what Raft does not use.
	hclog.Logger
	logger *slog.Logger
}

func newRaftLogger(logger *slog.Logger) raftLogger {
	return raftLogger{Logger: hclog.NewNullLogger(), logger: logger}
}

func slogLevel(level hclog.Level) slog.Level {
	switch {
	case level >= hclog.Error:
		return slog.LevelError
	case level == hclog.Warn:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Log implements hclog.Logger.
func (l raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if unansweredLines[msg] || isOrdinary(args) {
		to = slog.LevelDebug
	}
	if !l.logger.Enabled(context.Background(), to) {
		return
	}
	attrs := make([]slog.Attr, 0, len(args)/2+1)
	for len(args) >= 2 {
		key, ok := args[0].(string)
		if !ok {
			key = fmt.Sprint(args[0])
		}
		attrs = append(attrs, slog.String(key, printed(args[1])))
		args = args[2:]
	}
	if len(args) == 1 {
		attrs = append(attrs, slog.String("value", printed(args[0])))
	}
	l.logger.LogAttrs(context.Background(), to, "raft: "+msg, attrs...)
}

// unansweredLines are what Raft says at each try to reach a node that does not answer.
// followLeader tells it once.
var unansweredLines = map[string]bool{
	"failed to appendEntries to": true, "failed to heartbeat to": true, "failed to contact": true,
	"failed to make requestVote RPC": true, "failed to make pre-vote RPC": true,
}

// isOrdinary reports whether what Raft takes for an error is how things go here: a
// follower is sent a token when the log is cut.
func isOrdinary(args []any) bool {
	for _, arg := range args {
		err, ok := arg.(error)
		if !ok {
			continue
		}
		text := err.Error()
		if errors.Is(err, raft.ErrLogNotFound) || strings.Contains(text, errStateIsFetched.Error()) || strings.Contains(text, errStateIsHeld.Error()) {
			return true
		}
	}
	return false
}

// printed returns v as hclog would print it.
func printed(v any) string {
	if f, ok := v.(hclog.Format); ok && len(f) > 0 {
		if format, ok := f[0].(string); ok {
			return fmt.Sprintf(format, f[1:]...)
		}
	}
	return fmt.Sprint(v)
}

func (l raftLogger) enabled(level hclog.Level) bool {
	return l.logger.Enabled(context.Background(), slogLevel(level))
}

// Trace implements hclog.Logger.
func (l raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }

// Debug implements hclog.Logger.
func (l raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }

// Info implements hclog.Logger.
func (l raftLogger) Info(msg string, args ...any) { l.Log(hclog.Info, msg, args...) }

// Warn implements hclog.Logger.
func (l raftLogger) Warn(msg string, args ...any) { l.Log(hclog.Warn, msg, args...) }

// Error implements hclog.Logger.
func (l raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

// IsTrace implements hclog.Logger.
func (l raftLogger) IsTrace() bool { return l.enabled(hclog.Trace) }

// IsDebug implements hclog.Logger.
func (l raftLogger) IsDebug() bool { return l.enabled(hclog.Debug) }

// IsInfo implements hclog.Logger.
func (l raftLogger) IsInfo() bool { return l.enabled(hclog.Info) }

// IsWarn implements hclog.Logger.
func (l raftLogger) IsWarn() bool { return l.enabled(hclog.Warn) }

// IsError implements hclog.Logger.
func (l raftLogger) IsError() bool { return l.enabled(hclog.Error) }

// With implements hclog.Logger.
func (l raftLogger) With(args ...any) hclog.Logger {
	return raftLogger{Logger: l.Logger, logger: l.logger.With(args...)}
}

// Named implements hclog.Logger. Every line says that it is Raft's already.
func (l raftLogger) Named(string) hclog.Logger { return l }

// ResetNamed implements hclog.Logger.
func (l raftLogger) ResetNamed(string) hclog.Logger { return l }
