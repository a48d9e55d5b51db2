package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

func newStore() *cobra.Command {
	return newGroup("store", "Create, list, set and delete stores",
		newStoreCreate(), newStoreList(), newStoreGet(), newStoreSet(), newStoreDelete())
}

// storeSettings are the flags that say what may be set of a store.
type storeSettings struct {
	history, log   string
	tuplesMax      uint64
	callsPerSecond uint32
}

func (s *storeSettings) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.history, "history-retention", "", "how long past states can be read: a `duration` such as 30d, or forever")
	f.StringVar(&s.log, "log-retention", "", "how long changes can be read: a `duration` such as 30d, or forever")
	f.Uint64Var(&s.tuplesMax, "tuples-max", 0, "how many tuples the store may hold, a `number`; 0 for any")
	f.Uint32Var(&s.callsPerSecond, "calls-per-second", 0, "how many calls a second each node answers, a `number`; 0 for any")
}

// message returns the settings whose flags are given.
func (s *storeSettings) message(cmd *cobra.Command) (*pembav1.StoreSettings, error) {
	m := &pembav1.StoreSettings{}
	var err error
	if cmd.Flags().Changed("history-retention") {
		if m.History, err = parseRetention("history-retention", s.history); err != nil {
			return nil, err
		}
	}
	if cmd.Flags().Changed("log-retention") {
		if m.Log, err = parseRetention("log-retention", s.log); err != nil {
			return nil, err
		}
	}
	if cmd.Flags().Changed("tuples-max") {
		m.TuplesMax = &s.tuplesMax
	}
	if cmd.Flags().Changed("calls-per-second") {
		m.CallsPerSecond = &s.callsPerSecond
	}
	return m, nil
}

func newStoreCreate() *cobra.Command {
	var conn connection
	var settings storeSettings
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an empty store",
		Long: `Create makes an empty store, which has a schema, tuples, settings and a past of its
own. It takes an operator's key. What is not set keeps its default: history and
changes are kept for 30 days, and there are no limits.`,
		Example: "  pemba store create staging\n  pemba store create audit --history-retention forever --log-retention forever",
		Args:    arguments(1, 1, "NAME"),
	}
	conn.addServerFlags(cmd)
	settings.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := settings.message(cmd)
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Stores.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: args[0], Settings: m})
			if err != nil {
				return err
			}
			return printStores(cmd, &conn, answer.GetStore())
		})
	}
	return cmd
}

func newStoreList() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the stores that the key may know of",
		Long: `List shows, one a line, the stores that the key may know of: the name, how many
tuples there are, what is set, and when the store was made.`,
		Example: "  pemba store list",
		Args:    noArguments,
	}
	conn.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			var stores []*pembav1.Store
			for s, err := range c.ListStores(ctx) {
				if err != nil {
					return err
				}
				stores = append(stores, s)
			}
			return printStores(cmd, &conn, stores...)
		})
	}
	return cmd
}

func newStoreGet() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "get NAME",
		Short:   "Show one store",
		Example: "  pemba store get default -o json",
		Args:    arguments(1, 1, "NAME"),
	}
	conn.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Stores.GetStore(ctx, &pembav1.GetStoreRequest{Store: args[0]})
			if err != nil {
				return err
			}
			if conn.json() {
				j := newStoreJSON(answer.GetStore())
				j.Counters = answer.GetCounters()
				return printJSON(cmd, j)
			}
			if err := printStores(cmd, &conn, answer.GetStore()); err != nil {
				return err
			}
			var counters []row
			for _, name := range answer.GetCounters() {
				counters = append(counters, row{"counter", name})
			}
			return printTable(cmd, counters)
		})
	}
	return cmd
}

func newStoreSet() *cobra.Command {
	var conn connection
	var settings storeSettings
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change settings of a store",
		Long: `Set changes settings of a store; those that are not given stay. It takes an
operator's key. What a shorter retention no longer keeps cannot be read from the
next pruning on, and does not come back with a longer one.`,
		Example: "  pemba store set default --history-retention 7d\n  pemba store set staging --tuples-max 1000000 --calls-per-second 500",
		Args:    arguments(1, 1, "NAME"),
	}
	conn.addServerFlags(cmd)
	settings.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := settings.message(cmd)
		if err != nil {
			return err
		}
		if m.History == nil && m.Log == nil && m.TuplesMax == nil && m.CallsPerSecond == nil {
			return errors.New("nothing is set; give one of --history-retention, --log-retention, --tuples-max and --calls-per-second")
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Stores.UpdateStore(ctx, &pembav1.UpdateStoreRequest{Store: args[0], Settings: m})
			if err != nil {
				return err
			}
			return printStores(cmd, &conn, answer.GetStore())
		})
	}
	return cmd
}

func newStoreDelete() *cobra.Command {
	var conn connection
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a store with all that it holds and its past",
		Long: `Delete deletes a store with its schema, tuples and past. It cannot be undone, so
that --yes must be given. The store "default" cannot be deleted.`,
		Example: "  pemba store delete staging --yes",
		Args:    arguments(1, 1, "NAME"),
	}
	conn.addServerFlags(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "yes, delete it for ever")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			if !yes {
				answer, err := c.Stores.GetStore(ctx, &pembav1.GetStoreRequest{Store: args[0]})
				if err != nil {
					return err
				}
				return fmt.Errorf("the store %s holds tuples: %d; to delete it with all that it holds and its past, for ever, add --yes",
					answer.GetStore().GetName(), answer.GetStore().GetTuples())
			}
			answer, err := c.Stores.DeleteStore(ctx, &pembav1.DeleteStoreRequest{Store: args[0]})
			if err != nil {
				return err
			}
			if conn.json() {
				return printJSON(cmd, map[string]string{"deleted": args[0], "zookie": answer.GetDeletedAt().GetToken()})
			}
			return printf(cmd, "deleted %s, zookie %s\n", args[0], answer.GetDeletedAt().GetToken())
		})
	}
	return cmd
}

// A storeJSON is a store in the form of -o json.
type storeJSON struct {
	Name             string `json:"name"`
	CreatedAt        string `json:"created_at"`
	Tuples           uint64 `json:"tuples"`
	HistoryRetention string `json:"history_retention"`
	LogRetention     string `json:"log_retention"`
	TuplesMax        uint64 `json:"tuples_max"`
	CallsPerSecond   uint32 `json:"calls_per_second"`
	OldestHistory    string `json:"oldest_history,omitempty"`
	OldestChange     string `json:"oldest_change,omitempty"`
	// Counters are the names of its relationship counters, which get alone shows.
	Counters []string `json:"counters,omitempty"`
}

func newStoreJSON(s *pembav1.Store) storeJSON {
	settings := s.GetSettings()
	return storeJSON{
		Name: s.GetName(), CreatedAt: timeText(s.GetCreatedAt()), Tuples: s.GetTuples(),
		HistoryRetention: retentionText(settings.GetHistory()), LogRetention: retentionText(settings.GetLog()),
		TuplesMax: settings.GetTuplesMax(), CallsPerSecond: settings.GetCallsPerSecond(),
		OldestHistory: timeText(s.GetOldestHistory()), OldestChange: timeText(s.GetOldestChange()),
	}
}

func printStores(cmd *cobra.Command, conn *connection, stores ...*pembav1.Store) error {
	var rows []row
	for _, s := range stores {
		if conn.json() {
			if err := printJSON(cmd, newStoreJSON(s)); err != nil {
				return err
			}
			continue
		}
		settings := s.GetSettings()
		tuples, rate := "any number", "any rate"
		if n := settings.GetTuplesMax(); n > 0 {
			tuples = strconv.FormatUint(n, 10)
		}
		if n := settings.GetCallsPerSecond(); n > 0 {
			rate = fmt.Sprintf("%d calls/s", n)
		}
		rows = append(rows, row{
			s.GetName(), fmt.Sprintf("tuples %d of %s", s.GetTuples(), tuples), rate,
			"history " + retentionText(settings.GetHistory()), "log " + retentionText(settings.GetLog()),
			"created " + timeText(s.GetCreatedAt()),
		})
	}
	return printTable(cmd, rows)
}

// timeText is a moment as text, empty where there is none.
func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339Nano)
}
