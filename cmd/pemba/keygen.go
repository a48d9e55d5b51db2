package main

import (
	"crypto/rand"
	"encoding/base64"

	"github.com/spf13/cobra"
)

// keyBytes is how much chance a key holds; nobody guesses half of it.
const keyBytes = 32

func newKeygen() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen",
		Short: "Print a random key",
		Long: `Keygen prints a random key for "pemba serve", which callers then present. It is
written down nowhere else.`,
		Example: "  pemba keygen\n  PEMBA_SERVE_KEY=$(pemba keygen) pemba serve",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var b [keyBytes]byte
			_, _ = rand.Read(b[:]) // It never fails.
			return printf(cmd, "%s\n", base64.RawURLEncoding.EncodeToString(b[:]))
		},
	}
}
