package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

const momentForm = "a time such as 2026-01-31T12:00:00Z, a date such as 2026-01-31 (its begin in UTC), or how long ago, such as 24h, 90m or 30d"

// parseMoment reads a moment: a time, a date, or how long before now.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	if ago, err := parseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("--%s %q is not %s", flag, text, momentForm)
}

const day = 24 * time.Hour

// parseDuration reads a duration of zero or more in the form of Go, in which d
// is allowed too, for days of 24 hours, before the rest.
func parseDuration(text string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no duration such as 30d, 24h or 90m", text)
	var days time.Duration
	rest := text
	if number, behind, ok := strings.Cut(text, "d"); ok {
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n > uint64(math.MaxInt64/int64(day)) {
			return 0, bad
		}
		days, rest = time.Duration(n)*day, behind
		if rest == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") || days > math.MaxInt64-d {
		return 0, bad
	}
	return days + d, nil
}

// forever is the text of a retention without end.
const forever = "forever"

// parseRetention reads how long something is kept.
func parseRetention(flag, text string) (*pembav1.Retention, error) {
	if text == forever {
		return &pembav1.Retention{Kept: &pembav1.Retention_Forever{Forever: true}}, nil
	}
	d, err := parseDuration(text)
	if err == nil && d < time.Second {
		err = errors.New("at least a second must be kept")
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w; %q is allowed too", flag, text, err, forever)
	}
	return &pembav1.Retention{Kept: &pembav1.Retention_Duration{Duration: durationpb.New(d)}}, nil
}

// retentionText is the shortest text that parseRetention reads as r.
func retentionText(r *pembav1.Retention) string {
	if r.GetForever() {
		return forever
	}
	return durationText(r.GetDuration().AsDuration())
}

func durationText(d time.Duration) string {
	var text string
	if days := d / day; days > 0 {
		text = fmt.Sprintf("%dd", days)
		d %= day
	}
	if d == 0 && text != "" {
		return text
	}
	rest := d.String()
	// Go writes 1h0m0s; what is zero at the end says nothing.
	if strings.HasSuffix(rest, "m0s") {
		rest = strings.TrimSuffix(rest, "0s")
	}
	if strings.HasSuffix(rest, "h0m") {
		rest = strings.TrimSuffix(rest, "0m")
	}
	return text + rest
}
