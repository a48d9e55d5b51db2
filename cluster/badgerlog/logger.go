package badgerlog

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// badgerLogger puts Badger's lines onto slog. Badger formats several debug lines
// in each write, so these are dropped unseen, and its information is debug to
// everybody else.
type badgerLogger struct{ logger *slog.Logger }

func (b badgerLogger) Errorf(format string, args ...any)   { b.log(slog.LevelError, format, args) }
func (b badgerLogger) Warningf(format string, args ...any) { b.log(slog.LevelWarn, format, args) }
func (b badgerLogger) Infof(format string, args ...any)    { b.log(slog.LevelDebug, format, args) }
func (b badgerLogger) Debugf(string, ...any)               {}

func (b badgerLogger) log(level slog.Level, format string, args []any) {
	ctx := context.Background()
	if !b.logger.Enabled(ctx, level) {
		return
	}
	b.logger.Log(ctx, level, "badger: "+strings.TrimSpace(fmt.Sprintf(format, args...)))
}
