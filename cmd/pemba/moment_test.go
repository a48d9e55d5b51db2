package main

import (
	"testing"
	"time"
)

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for text, want := range map[string]string{
		"2026-01-31T12:00:00Z":        "2026-01-31T12:00:00Z",
		"2026-01-31T12:00:00.5+01:00": "2026-01-31T11:00:00.5Z",
		"2026-01-31":                  "2026-01-31T00:00:00Z",
		"24h":                         "2026-03-03T05:06:07Z",
		"90m":                         "2026-03-04T03:36:07Z",
		"0s":                          "2026-03-04T05:06:07Z",
		"30d":                         "2026-02-02T05:06:07Z",
		"1d12h":                       "2026-03-02T17:06:07Z",
	} {
		if got, err := parseMoment("as-of", text, now); err != nil || got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %v; expected %s", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "yesterday", "-1h", "+1h", "d", "-1d", "1d-1h", "1d+1h", "1.5d", "2026-13-01", "99999999999d", "106751d24h", "1h1d", "5", "1dd",
	} {
		if got, err := parseMoment("as-of", text, now); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

// TestRetention: what is shown of a retention can be given as one.
func TestRetention(t *testing.T) {
	for text, want := range map[string]string{
		"forever": "forever", "30d": "30d", "720h": "30d", "36h": "1d12h", "90m": "1h30m", "1s": "1s", "1m": "1m", "100m": "1h40m", "1h": "1h",
		"1500ms": "1.5s", "10m10s": "10m10s", "20h": "20h",
	} {
		r, err := parseRetention("log-retention", text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := retentionText(r); got != want {
			t.Errorf("%s is shown as %s, expected %s", text, got, want)
		}
	}
	for _, text := range []string{"", "0s", "999ms", "never", "-1d"} {
		if _, err := parseRetention("log-retention", text); err == nil {
			t.Errorf("%q is taken for a retention", text)
		}
	}
}
