package peer

import (
	"fmt"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// transportLogger puts the warnings and errors of raft.NetworkTransport onto
// slog. It calls every connection that breaks an error, which for a cluster is
// information.
type transportLogger struct {
	// The null logger answers for all else.
	hclog.Logger
	logger *slog.Logger
	// quiet reports that what happens now is meant to happen.
	quiet func() bool
}

// Error implements hclog.Logger.
func (l transportLogger) Error(msg string, args ...any) {
	if l.quiet() {
		return
	}
	attrs := make([]any, 0, len(args)/2)
	for ; len(args) >= 2; args = args[2:] {
		attrs = append(attrs, slog.String(fmt.Sprint(args[0]), fmt.Sprint(args[1])))
	}
	l.logger.Info("raft transport: "+msg, attrs...)
}

// Warn implements hclog.Logger.
func (l transportLogger) Warn(msg string, args ...any) { l.Error(msg, args...) }
