package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/cluster"
)

// recoverWarning says what a recovery can lose.
const recoverWarning = `Recovering makes this node a cluster of its own, with what it has.
- What the lost cluster acknowledged and this node has not is lost.
- What was never acknowledged may be there.
- The other nodes of the lost cluster are refused from now on; do not run them.
- Of zookies of the lost cluster, "at least as fresh" is answered with all that there
  is; any other use of them is refused.
Take the node whose last entry has the highest term and, of those, the highest index:
it has everything that any of those left knows to be agreed. If more than half of the
voters can still be started, start them instead: then nothing is lost.`

func newClusterRecover() *cobra.Command {
	var dataDir string
	var yes bool
	var log logFlags
	cmd := &cobra.Command{
		Use:   "recover --data-dir DIR --yes",
		Short: "Make one node a cluster of its own, after more than half of the voters were lost for good",
		Long: `Recover works on the data directory of a node that does not run, and talks to no
server. It is the last resort.

` + recoverWarning + `

Without --yes it only says so, and what the last entry of the node is. Afterwards the node is started again with serve, and
other nodes join it with empty directories.`,
		Example: "  pemba cluster recover --data-dir /var/lib/pemba --yes",
		Args:    noArguments,
	}
	flags := cmd.Flags()
	flags.StringVar(&dataDir, "data-dir", "", "the data `directory` of the node")
	flags.BoolVar(&yes, "yes", false, "do it, having read what it can lose")
	log.addFlags(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dataDir == "" {
			return errors.New("--data-dir is missing: it names the data directory of the node to recover")
		}
		if !yes {
			return fmt.Errorf("nothing was changed; --yes does it\n\n%s\n%s", howFar(cmd.Context(), dataDir), recoverWarning)
		}
		logger, err := log.logger(cmd)
		if err != nil {
			return err
		}
		recovered, err := cluster.Recover(cmd.Context(), cluster.Config{DataDir: dataDir, Logger: logger})
		if err != nil {
			return err
		}
		return printf(cmd, "%s is cluster %s now, was %s\nit holds everything up to revision %d, of %s\ngiven up: %s\n",
			dataDir, hex.EncodeToString(recovered.ClusterID[:]), hex.EncodeToString(recovered.Was[:]),
			recovered.Revision, recovered.Stamp, cmp.Or(strings.Join(recovered.Lost, ", "), "nobody"))
	}
	return cmd
}

// howFar says how far the data of a node goes, in lines, or why that cannot be told.
func howFar(ctx context.Context, dataDir string) string {
	found, err := cluster.Examine(ctx, cluster.Config{DataDir: dataDir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fmt.Sprintf("How far %s goes cannot be told: %v\n", dataDir, err)
	}
	begun := ""
	if found.Recovering {
		begun = "a recovery of it was begun and did not end: its last entry may be of that, and --yes goes on with it\n"
	}
	return fmt.Sprintf("%s is node %s of cluster %s\n"+begun+"its last entry has term %d and index %d\nits newest change is of %s\n",
		dataDir, found.NodeID, hex.EncodeToString(found.ClusterID[:]), found.LastTerm, found.LastIndex, found.Stamp)
}
