package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
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
	output
	addr, key, store string

	tls, insecureKey              bool
	caCert, clientCert, clientKey string
}

// addFlags adds the flags of a command that asks one store.
func (c *connection) addFlags(cmd *cobra.Command) {
	c.addServerFlags(cmd)
	cmd.Flags().StringVar(&c.store, "store", fromEnv("PEMBA_STORE", ""), "the `store` that it is about; empty for the default one (PEMBA_STORE)")
}

// addServerFlags adds the flags of a command that asks a server, and no store or
// one that it names otherwise.
func (c *connection) addServerFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.addr, "addr", fromEnv("PEMBA_ADDR", defaultAddr), "the server's gRPC `address` (PEMBA_ADDR)")
	f.StringVar(&c.key, "key", "", "the `key` to present (PEMBA_KEY)")
	f.BoolVar(&c.insecureKey, "insecure-key", envIsTrue("PEMBA_INSECURE_KEY"), "send the key to another machine without TLS too (PEMBA_INSECURE_KEY)")
	f.BoolVar(&c.tls, "tls", envIsTrue("PEMBA_TLS"), "speak TLS and trust the authorities that this machine trusts (PEMBA_TLS)")
	f.StringVar(&c.caCert, "ca-cert", fromEnv("PEMBA_CA_CERT", ""), "speak TLS and trust the authorities in this PEM `file` alone (PEMBA_CA_CERT)")
	f.StringVar(&c.clientCert, "client-cert", fromEnv("PEMBA_CLIENT_CERT", ""), "speak TLS and show the certificate in this PEM `file` (PEMBA_CLIENT_CERT)")
	f.StringVar(&c.clientKey, "client-key", fromEnv("PEMBA_CLIENT_KEY", ""), "the private key of --client-cert, a PEM `file` (PEMBA_CLIENT_KEY)")
	c.output.addFlags(cmd)
	before(cmd, func() error {
		for _, name := range []string{"PEMBA_TLS", "PEMBA_INSECURE_KEY"} {
			// Taken for a no, a yes in other words would leave out the encryption.
			if _, err := strconv.ParseBool(fromEnv(name, "false")); err != nil {
				return fmt.Errorf("%s is %q; true and false are allowed", name, os.Getenv(name))
			}
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

// envIsTrue reports whether a variable says yes. What is neither yes nor no is
// refused before the command runs.
func envIsTrue(name string) bool {
	yes, err := strconv.ParseBool(os.Getenv(name))
	return err == nil && yes
}

// dial connects. The key of the environment is read here and not as the flag's
// default, so that no help text shows it.
func (c *connection) dial(ctx context.Context) (*client.Client, error) {
	config := client.Config{Addr: c.addr, Key: c.key, Store: c.store, InsecureKey: c.insecureKey}
	if config.Key == "" {
		config.Key = os.Getenv("PEMBA_KEY")
	}
	if c.tls || c.caCert+c.clientCert+c.clientKey != "" {
		var err error
		if config.TLS, err = client.LoadTLS(c.caCert, c.clientCert, c.clientKey); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialPatience, fmt.Errorf("nobody answered within %v", dialPatience))
	defer cancel()
	conn, err := client.Dial(ctx, config)
	if err != nil {
		return nil, connectionHint(err)
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

// An output holds the flag of every command that shows something.
type output struct {
	form string
}

func (o *output) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.form, "output", "o", "text", "the `form` of the output: text or json")
	// It only fails for a flag that is not there.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	before(cmd, func() error {
		if o.form != "text" && o.form != "json" {
			return fmt.Errorf("-o %s: text and json are allowed", o.form)
		}
		return nil
	})
}

func (o *output) json() bool { return o.form == "json" }

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
	atLeast, at, asOf string
	linearizable      bool

	moment time.Time // what asOf means
}

func (c *consistency) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.atLeast, "at-least", "", "answer from a state that holds everything up to this `zookie`")
	f.StringVar(&c.at, "at", "", "answer from the state at this `zookie`")
	f.StringVar(&c.asOf, "as-of", "", "answer from the state as it was at this `time`: a time, a date, or how long ago, as 24h")
	f.BoolVar(&c.linearizable, "linearizable", false, "answer from a state that holds everything acknowledged before")
	before(cmd, func() error {
		given := 0
		for _, name := range []string{"at-least", "at", "as-of"} {
			flag := f.Lookup(name)
			if flag.Changed && flag.Value.String() == "" {
				// An unset variable in a script must not drop what it asks for.
				return fmt.Errorf("--%s is empty; leave it out for the newest state", name)
			}
			if flag.Changed {
				given++
			}
		}
		if c.linearizable {
			given++
		}
		if given > 1 {
			return errors.New("--at-least, --at, --as-of and --linearizable exclude each other")
		}
		if c.asOf == "" {
			return nil
		}
		var err error
		c.moment, err = parseMoment("as-of", c.asOf, time.Now())
		return err
	})
}

func (c *consistency) message() *pembav1.Consistency {
	switch {
	case c.atLeast != "":
		return client.AtLeast(&pembav1.Zookie{Token: c.atLeast})
	case c.at != "":
		return client.ExactlyAt(&pembav1.Zookie{Token: c.at})
	case c.asOf != "":
		return client.AsOf(c.moment)
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
	f.StringVar(&c.actor, "recorded-actor", "", "on whose behalf the change is made, in any `words`; recorded, not judged")
	f.StringVar(&c.metadata, "metadata", "", "a `JSON` object to keep with the change")
	before(cmd, func() error { return needTexts(cmd, "metadata") })
}
