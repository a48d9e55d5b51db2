package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// defaultAddr is where a server of this machine listens.
const defaultAddr = "127.0.0.1:50051"

// dialPatience bounds how long a command waits for the connection.
const dialPatience = 10 * time.Second

// A connection holds the flags that every command has which talks to a server.
type connection struct {
	addr, key, store, output string
}

func (c *connection) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.addr, "addr", fromEnv("PEMBA_ADDR", defaultAddr), "the server's gRPC `address` (PEMBA_ADDR)")
	f.StringVar(&c.key, "key", "", "the `key` to present (PEMBA_KEY)")
	f.StringVar(&c.store, "store", fromEnv("PEMBA_STORE", ""), "the `store` to ask; empty for the default one (PEMBA_STORE)")
	f.StringVarP(&c.output, "output", "o", "text", "the `form` of the output: text or json")
	before(cmd, func() error {
		if c.output != "text" && c.output != "json" {
			return fmt.Errorf("-o %s: text and json are allowed", c.output)
		}
		return nil
	})
}

func fromEnv(name, otherwise string) string {
	if v, ok := os.LookupEnv(name); ok && v != "" {
		return v
	}
	return otherwise
}

// dial connects. The key of the environment is read here and not as the flag's
// default, so that no help text shows it.
func (c *connection) dial(ctx context.Context) (*client.Client, error) {
	key := c.key
	if key == "" {
		key = os.Getenv("PEMBA_KEY")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialPatience, fmt.Errorf("nobody answered within %v", dialPatience))
	defer cancel()
	conn, err := client.Dial(ctx, client.Config{Addr: c.addr, Key: key, Store: c.store})
	if err != nil {
		return nil, fmt.Errorf("%w; \"pemba serve\" or \"pemba demo\" start a server, --addr or PEMBA_ADDR name another", err)
	}
	return conn, nil
}

// call connects, lets f work and closes the connection.
func (c *connection) call(cmd *cobra.Command, f func(ctx context.Context, conn *client.Client) error) error {
	conn, err := c.dial(cmd.Context())
	if err != nil {
		return err
	}
	err = f(cmd.Context(), conn)
	if closeErr := conn.Close(); err == nil {
		return closeErr
	}
	return err
}

func (c *connection) json() bool { return c.output == "json" }

// printJSON writes v as one line.
func printJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printf writes to the standard output.
func printf(cmd *cobra.Command, format string, args ...any) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), format, args...)
	return err
}

// A consistency holds the flags that say which state a question is asked of.
type consistency struct {
	atLeast, at  string
	linearizable bool
}

func (c *consistency) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.atLeast, "at-least", "", "answer from a state that holds everything up to this `zookie`")
	f.StringVar(&c.at, "at", "", "answer from the state at this `zookie`")
	f.BoolVar(&c.linearizable, "linearizable", false, "answer from a state that holds everything acknowledged before")
	before(cmd, func() error {
		for _, name := range []string{"at-least", "at"} {
			if flag := f.Lookup(name); flag.Changed && flag.Value.String() == "" {
				// An unset variable in a script must not drop what it asks for.
				return fmt.Errorf("--%s is empty; leave it out for the newest state", name)
			}
		}
		if c.atLeast != "" && c.at != "" || c.linearizable && c.atLeast+c.at != "" {
			return errors.New("--at-least, --at and --linearizable exclude each other")
		}
		return nil
	})
}

func (c *consistency) message() *pembav1.Consistency {
	switch {
	case c.atLeast != "":
		return client.AtLeast(&pembav1.Zookie{Token: c.atLeast})
	case c.at != "":
		return client.ExactlyAt(&pembav1.Zookie{Token: c.at})
	case c.linearizable:
		return client.Linearizable()
	}
	return nil
}

// parseJSONObject reads the value of a flag such as --context. An empty text
// gives nil.
func parseJSONObject(flag, text string) (*structpb.Struct, error) {
	if text == "" {
		return nil, nil
	}
	var m map[string]any
	err := json.Unmarshal([]byte(text), &m)
	var otherType *json.UnmarshalTypeError
	if err == nil && m == nil || errors.As(err, &otherType) {
		return nil, fmt.Errorf("--%s: %q is not a JSON object such as {\"day\":\"monday\"}", flag, text)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s: %q is not JSON: %w", flag, text, err)
	}
	s, err := structpb.NewStruct(m)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return s, nil
}

// A change holds the flags of commands that change something.
type change struct {
	actor, metadata string
}

func (c *change) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.actor, "recorded-actor", "", "on whose behalf the change is made, as `subject`; recorded, not judged")
	f.StringVar(&c.metadata, "metadata", "", "a `JSON` object to keep with the change")
}
