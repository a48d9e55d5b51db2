package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
)

// A sourceConnection holds the flags that say which server of authzed.api.v1 to
// copy from.
type sourceConnection struct {
	addr, key, store string

	tls, insecureKey              bool
	caCert, clientCert, clientKey string
	patience                      time.Duration
}

func (s *sourceConnection) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.addr, "from", fromEnv("PEMBA_FROM", ""), "the gRPC `address` of the server to copy from (PEMBA_FROM)")
	f.StringVar(&s.key, "from-key", "", "the `key` to present there (PEMBA_FROM_KEY)")
	f.StringVar(&s.store, "from-store", fromEnv("PEMBA_FROM_STORE", ""), "the `store` to copy, where that server is a Pemba (PEMBA_FROM_STORE)")
	f.BoolVar(&s.insecureKey, "from-insecure-key", envIsTrue("PEMBA_FROM_INSECURE_KEY"), "send its key to another machine without TLS too (PEMBA_FROM_INSECURE_KEY)")
	f.BoolVar(&s.tls, "from-tls", envIsTrue("PEMBA_FROM_TLS"), "speak TLS to it and trust the authorities that this machine trusts (PEMBA_FROM_TLS)")
	f.StringVar(&s.caCert, "from-ca-cert", fromEnv("PEMBA_FROM_CA_CERT", ""), "speak TLS to it and trust the authorities in this PEM `file` alone (PEMBA_FROM_CA_CERT)")
	f.StringVar(&s.clientCert, "from-client-cert", fromEnv("PEMBA_FROM_CLIENT_CERT", ""), "speak TLS to it and show the certificate in this PEM `file` (PEMBA_FROM_CLIENT_CERT)")
	f.StringVar(&s.clientKey, "from-client-key", fromEnv("PEMBA_FROM_CLIENT_KEY", ""), "the private key of --from-client-cert, a PEM `file` (PEMBA_FROM_CLIENT_KEY)")
	f.DurationVar(&s.patience, "from-patience", time.Minute, "how long to try again when the server to copy from cannot be reached any more")
	before(cmd, func() error {
		for _, name := range []string{"PEMBA_FROM_TLS", "PEMBA_FROM_INSECURE_KEY"} {
			// As with those of the other connection.
			if _, err := strconv.ParseBool(fromEnv(name, "false")); err != nil {
				return fmt.Errorf("%s is %q; true and false are allowed", name, os.Getenv(name))
			}
		}
		switch {
		case s.addr == "":
			return errors.New("name the server to copy from by --from or PEMBA_FROM, as --from 127.0.0.1:50051")
		case s.patience < 0:
			return fmt.Errorf("--from-patience %v: it is negative; 0 and more are allowed", s.patience)
		}
		return nil
	})
}

// dial connects to the source. Whether a key may go there without encryption is
// judged as it is for every other server.
func (s *sourceConnection) dial(ctx ctx) (*source, error) {
	config := client.Config{Addr: s.addr, Key: s.key, InsecureKey: s.insecureKey}
	if config.Key == "" {
		config.Key = os.Getenv("PEMBA_FROM_KEY")
	}
	if s.tls || s.caCert+s.clientCert+s.clientKey != "" {
		var err error
		if config.TLS, err = client.LoadTLS(s.caCert, s.clientCert, s.clientKey); err != nil {
			return nil, fmt.Errorf("the source: %w", err)
		}
	}
	dialing, cancel := context.WithTimeoutCause(ctx, dialPatience, fmt.Errorf("nobody answered within %v", dialPatience))
	defer cancel()
	c, err := client.Dial(dialing, config)
	if err != nil {
		return nil, fmt.Errorf("the source: %w", sourceHint(err))
	}
	return &source{
		client: c, addr: s.addr, store: s.store, patience: s.patience, keyByFlag: s.key != "",
		schemas: v1.NewSchemaServiceClient(c.Conn()), permissions: v1.NewPermissionsServiceClient(c.Conn()),
	}, nil
}

// inSourceFlags gives a hint for the other connection the flags of this one.
var inSourceFlags = strings.NewReplacer(
	"--client-ca", "--client-ca", // A flag of the server.
	"--addr", "--from", "PEMBA_ADDR", "PEMBA_FROM", "--", "--from-", "PEMBA_", "PEMBA_FROM_",
)

// sourceHint is connectionHint for the source.
func sourceHint(err error) error {
	var failure *client.DialError
	switch {
	case errors.Is(err, client.ErrKeyExposed):
		return fmt.Errorf("%w; speak TLS with --from-tls or --from-ca-cert, or allow it with --from-insecure-key", err)
	case !errors.As(err, &failure):
		return fmt.Errorf("%w; see --from and PEMBA_FROM", err)
	case failure.HTTP:
		return fmt.Errorf("%w%s", err, inSourceFlags.Replace(wantsGRPC))
	case tlsHints[failure.TLS] != "":
		return fmt.Errorf("%w; %s", err, inSourceFlags.Replace(tlsHints[failure.TLS]))
	}
	return err
}

// A source is a server of authzed.api.v1 that is copied from.
type source struct {
	client      *client.Client
	schemas     v1.SchemaServiceClient
	permissions v1.PermissionsServiceClient

	addr, store string
	patience    time.Duration
	keyByFlag   bool

	// lost is called when the source cannot be reached and is tried again, found when
	// it answers again. Both may be nil.
	lost  func(error)
	found func()
}

// A sourceError is what the source answered, in words. It is no gRPC status, lest it
// be taken for one of the server that is written to.
type sourceError struct {
	code codes.Code
	// reason is that of its google.rpc.ErrorInfo, of any domain; empty if it has none.
	reason string
	text   string
}

// newSourceError makes one of a status, with the source's own words.
func newSourceError(st *status.Status) *sourceError {
	e := &sourceError{code: st.Code(), text: st.Message()}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() != "" {
			e.reason = info.GetReason()
			e.text += " (" + e.reason + ")"
		}
	}
	return e
}

func (e *sourceError) Error() string { return e.text }

// context carries the name of the store, which servers that have no stores ignore.
func (s *source) context(ctx ctx) ctx {
	if s.store == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, api.StoreHeader, s.store)
}

// failed makes a *sourceError of what a call to the source failed by. The end of ctx
// stays what it is.
func (s *source) failed(ctx ctx, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e := newSourceError(status.Convert(err))
	switch {
	case e.reason == engine.UnknownStore.String():
		e.text = "--from-store: there is no such store: " + e.text
	case e.code == codes.Unauthenticated:
		e.text = "it wants a key; give it by --from-key or PEMBA_FROM_KEY: " + e.text
	case e.code == codes.PermissionDenied:
		by := "PEMBA_FROM_KEY"
		if s.keyByFlag || os.Getenv(by) == "" {
			by = "--from-key"
		}
		e.text += "; the key was given by " + by
	case e.code == codes.Unimplemented:
		e.text = "it does not speak authzed.api.v1, or too old a version of it: " + e.text
	default:
		e.text += " (" + e.code.String() + ")"
	}
	e.text = fmt.Sprintf("the source at %s: %s", s.addr, e.text)
	return e
}

// lasting are the codes of answers that come again when the same is asked again. All
// others may be about a connection that was lost, or a server that is busy.
var lasting = []codes.Code{
	codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied,
	codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.Unauthenticated, codes.DataLoss,
}

// A persistence tries something again for some time.
type persistence struct {
	source   *source
	patience time.Duration
	// since is when it failed first, zero while it does not; pause is how long was
	// waited last.
	since time.Time
	pause time.Duration
}

// The pauses between attempts grow from one to the other.
const (
	retryPauseMin = 100 * time.Millisecond
	retryPauseMax = 5 * time.Second
)

// succeeded says that it went on.
func (p *persistence) succeeded() {
	if !p.since.IsZero() && p.source.found != nil {
		p.source.found()
	}
	*p = p.source.persistence()
}

// persistence begins to try something.
func (s *source) persistence() persistence { return persistence{source: s, patience: s.patience} }

// again waits until it is to be tried again. It returns the error where that is of no
// use, and where it has failed for too long.
func (p *persistence) again(ctx ctx, err error) error {
	var refused *sourceError
	if !errors.As(err, &refused) || slices.Contains(lasting, refused.code) {
		return err
	}
	first := p.since.IsZero()
	if first {
		p.since = time.Now()
	}
	p.pause = min(max(2*p.pause, retryPauseMin), retryPauseMax)
	if time.Since(p.since)+p.pause > p.patience {
		return fmt.Errorf("%w; it was tried again for --from-patience, %v", err, p.patience)
	}
	if first && p.source.lost != nil {
		p.source.lost(err)
	}
	select {
	case <-time.After(p.pause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// persist calls f until it succeeds or there is no use in it.
func (s *source) persist(ctx ctx, f func() error) error {
	p := s.persistence()
	for {
		err := f()
		if err == nil {
			p.succeeded()
			return nil
		}
		if err = p.again(ctx, s.failed(ctx, err)); err != nil {
			return err
		}
	}
}

// readSchema returns the schema, and the token of the revision at which it was read.
func (s *source) readSchema(ctx ctx) (text, revision string, err error) {
	var answer *v1.ReadSchemaResponse
	err = s.persist(ctx, func() (err error) {
		answer, err = s.schemas.ReadSchema(s.context(ctx), &v1.ReadSchemaRequest{})
		return err
	})
	var refused *sourceError
	switch {
	case errors.As(err, &refused) && refused.code == codes.NotFound && refused.reason != engine.UnknownStore.String():
		return "", "", fmt.Errorf("there is nothing to copy, for the source has no schema: %w", err)
	case err != nil:
		return "", "", err
	case answer.GetReadAt().GetToken() == "":
		return "", "", fmt.Errorf("the source at %s does not tell the revision of its schema, so that nothing can be read at the same one; a newer version of it does", s.addr)
	}
	return answer.GetSchemaText(), answer.GetReadAt().GetToken(), nil
}

// countPatience bounds how long the number of relationships is waited for.
const countPatience = 5 * time.Second

// count returns how many relationships there are, if the source can tell: only
// a Pemba can, and only in its own API.
func (s *source) count(ctx ctx) int64 {
	ctx, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	answer, err := pembav1.NewTupleServiceClient(s.client.Conn()).CountTuples(ctx, &pembav1.CountTuplesRequest{Store: s.store})
	if err != nil {
		return 0 // It is for the progress alone, which does without.
	}
	return int64(answer.GetCount())
}

// at asks for the state at a revision of the source.
func at(revision string) *v1.Consistency {
	return &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: &v1.ZedToken{Token: revision}}}
}

// relationships yields the relationships at a revision, page by page, and at last an
// error if there is one. When the source is lost it goes on behind the last page.
func (s *source) relationships(ctx ctx, revision string) iter.Seq2[[]*v1.Relationship, error] {
	return func(yield func([]*v1.Relationship, error) bool) {
		p := s.persistence()
		var cursor *v1.Cursor
		for {
			err := s.pages(ctx, revision, cursor, func(page *v1.ExportBulkRelationshipsResponse) bool {
				p.succeeded()
				cursor = page.GetAfterResultCursor()
				return yield(page.GetRelationships(), nil)
			})
			if err == nil {
				return
			}
			if err = p.again(ctx, s.failed(ctx, err)); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// errNoCursor is the error of a page behind which nobody could go on.
var errNoCursor = status.Error(codes.Unimplemented, "a page of the export has no cursor")

// pages gives what one call exports to take, until take wants no more.
func (s *source) pages(ctx ctx, revision string, from *v1.Cursor, take func(*v1.ExportBulkRelationshipsResponse) bool) error {
	ctx, cancel := context.WithCancel(s.context(ctx))
	defer cancel()
	stream, err := s.permissions.ExportBulkRelationships(ctx, &v1.ExportBulkRelationshipsRequest{Consistency: at(revision), OptionalCursor: from})
	if err != nil {
		return err
	}
	for {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case len(page.GetRelationships()) == 0:
			continue
		case page.GetAfterResultCursor() == nil:
			return errNoCursor
		case !take(page):
			return nil
		}
	}
}
