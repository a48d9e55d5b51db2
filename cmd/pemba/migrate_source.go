package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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
	// silenceMin is how long an answer is waited for at least, also where nothing is
	// tried again.
	silenceMin time.Duration
}

// silenceMinDefault is how long even a server takes that is well and has much to do.
const silenceMinDefault = 10 * time.Second

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
	f.DurationVar(&s.patience, "from-patience", time.Minute, "how long to try again when the server to copy from cannot be reached any more, and to wait for an answer of it, at least 10s")
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
		client: c, addr: s.addr, store: s.store, patience: s.patience, silence: max(s.patience, s.silenceMin), told: make(map[string]time.Time), keyByFlag: s.key != "",
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
	// patience is how long something is tried again, silence how long an answer or the
	// next page is waited for. Invariant: patience <= silence.
	patience, silence time.Duration
	keyByFlag         bool
	// told has the errors that lost was called with, and when. Invariant:
	// len(told) <= toldMax.
	told map[string]time.Time

	// lost is called when the source fails and is tried again, once for each text within
	// toldAgain; found when it answers again. Both may be nil.
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
	// silent says that it answered nothing for so long that it is not waited for any
	// more, tooLarge that its answer is larger than a message may be.
	silent, tooLarge bool
}

// sourceTextMax is how many bytes of a text of the source are told.
const sourceTextMax = 400

// brief is the beginning of a text of at most size bytes, and some, on one line that a
// terminal may be given. It keeps none of the text's memory.
func brief(text string, size int) string {
	rest := ""
	if len(text) > size {
		rest = fmt.Sprintf("... (of %d bytes)", len(text))
		for size > 0 && !utf8.RuneStart(text[size]) {
			size--
		}
		text = text[:size]
	}
	text = strings.NewReplacer("\n", "\u240a", "\t", "\u2409").Replace(printable(text))
	return strings.Clone(text) + rest
}

// newSourceError makes one of a status, with the source's own words.
func newSourceError(st *status.Status) *sourceError {
	e := &sourceError{code: st.Code(), text: brief(st.Message(), sourceTextMax)}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() != "" {
			e.reason = brief(info.GetReason(), sourceTextMax)
			e.text += " (" + e.reason + ")"
			break
		}
	}
	// gRPC has no other sign for what exceeds the limit of either side.
	e.tooLarge = e.code == codes.ResourceExhausted && strings.Contains(st.Message(), "message") && strings.Contains(st.Message(), "larger than max")
	return e
}

func (e *sourceError) Error() string { return e.text }

// lasting reports whether the same comes again when the same is asked again.
func (e *sourceError) lasting() bool { return e.tooLarge || slices.Contains(lasting, e.code) }

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
	case errors.Is(err, errSilent):
		e.code, e.silent = codes.DeadlineExceeded, true
		e.text = fmt.Sprintf("nothing that goes on came of it for %v; raise --from-patience to wait longer", s.silence)
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

const (
	// toldMax is how many errors are told within toldAgain.
	toldMax   = 16
	toldAgain = time.Minute
)

// tell tells of an error that is tried again, unless it was told of just before.
func (s *source) tell(err error) {
	maps.DeleteFunc(s.told, func(_ string, at time.Time) bool { return time.Since(at) > toldAgain })
	text := err.Error()
	if _, told := s.told[text]; told || len(s.told) == toldMax || s.lost == nil {
		return
	}
	s.told[text] = time.Now()
	s.lost(err)
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
	if !errors.As(err, &refused) || refused.silent || refused.lasting() {
		return err
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	p.pause = min(max(2*p.pause, retryPauseMin), retryPauseMax)
	if time.Since(p.since)+p.pause > p.patience {
		return fmt.Errorf("%w; it was tried again for --from-patience, %v", err, p.patience)
	}
	p.source.tell(err)
	select {
	case <-time.After(p.pause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errSilent is the cause of the end of a call of which nothing was heard for too long.
var errSilent = errors.New("the source is silent")

// hear begins a call that ends with errSilent when silence fires. It must be ended by
// end.
func (s *source) hear(ctx ctx) (calling ctx, silence *time.Timer, end func()) {
	calling, cancel := context.WithCancelCause(s.context(ctx))
	silence = time.AfterFunc(s.silence, func() { cancel(errSilent) })
	return calling, silence, func() {
		silence.Stop()
		cancel(nil)
	}
}

// heard makes errSilent of an error of a call that ended by it.
func heard(calling ctx, err error) error {
	if err != nil && errors.Is(context.Cause(calling), errSilent) {
		return errSilent
	}
	return err
}

// persist calls f until it succeeds or there is no use in it, or it is silent.
func (s *source) persist(ctx ctx, f func(ctx) error) error {
	p := s.persistence()
	for {
		calling, _, end := s.hear(ctx)
		err := heard(calling, f(calling))
		end()
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
	err = s.persist(ctx, func(ctx context.Context) (err error) {
		answer, err = s.schemas.ReadSchema(ctx, &v1.ReadSchemaRequest{})
		return err
	})
	var refused *sourceError
	switch {
	case errors.As(err, &refused) && refused.code == codes.NotFound && refused.reason != engine.UnknownStore.String():
		return "", "", fmt.Errorf("there is nothing to copy, for the source has no schema: %w", err)
	case errors.As(err, &refused) && refused.tooLarge:
		return "", "", fmt.Errorf("the schema is too large to be read, and a server takes schemas of at most %d bytes unless its --limit-schema-bytes says otherwise: %w",
			api.DefaultLimits().SchemaBytes, err)
	case err != nil:
		return "", "", err
	case answer.GetReadAt().GetToken() == "":
		return "", "", fmt.Errorf("the source at %s does not tell the revision of its schema, so that nothing can be read at the same one; a newer version of it does", s.addr)
	}
	revision = answer.GetReadAt().GetToken()
	if text := brief(revision, revisionBytesMax); text != revision {
		return "", "", fmt.Errorf("the source at %s tells its revision by a token that no command line can give back: it has %d bytes and begins with %s; up to %d bytes are allowed, and no control characters",
			s.addr, len(revision), brief(revision, 40), revisionBytesMax)
	}
	return answer.GetSchemaText(), revision, nil
}

// revisionBytesMax bounds the token of a revision, which is shown and given back.
const revisionBytesMax = 4 << 10

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
		var w way
		for {
			err := s.pages(ctx, revision, &w, func(page *v1.ExportBulkRelationshipsResponse) bool {
				p.succeeded()
				return len(page.GetRelationships()) == 0 || yield(page.GetRelationships(), nil)
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

// errNoWay is the error of a page whose cursor an earlier one had.
var errNoWay = status.Error(codes.DataLoss, "the export does not go on: a page has the cursor of an earlier one")

// emptyPagesMax is how many pages without relationships may follow one another. A server
// leaves out what it does not show when it fills a page, so that few or none are empty.
const emptyPagesMax = 10_000

// errEmptyPages is the error of an export that has always another page, and nothing in
// any.
var errEmptyPages = status.Errorf(codes.DataLoss, "the export comes to no end: %d pages in a row have cursors to go on from and no relationships", emptyPagesMax)

// A way is where an export stands. It finds out when it goes in a circle: the cursor
// of one page is kept, and then of one twice as far, so that some page of a circle of
// any length is met again, with the memory of one (R. Brent).
type way struct {
	last *v1.Cursor // Nil at the start.
	kept string
	// steps is how often the cursor moved. Invariant: kept is what it was at the
	// largest power of two that is no larger.
	steps uint64
	// empty is how many pages before the cursor had no relationships, back to one that
	// had some. Invariant: empty < emptyPagesMax where the export goes on.
	empty int
}

// stands reports whether a cursor is where the way stands, or none.
func (w *way) stands(c *v1.Cursor) bool {
	return c == nil || w.last != nil && c.GetToken() == w.last.GetToken()
}

// move goes on to a cursor. It reports false where the way was before.
func (w *way) move(c *v1.Cursor) bool {
	if w.steps > 0 && (w.stands(c) || c.GetToken() == w.kept) {
		return false
	}
	w.last = c
	if w.steps++; w.steps&(w.steps-1) == 0 {
		w.kept = c.GetToken()
	}
	return true
}

// pages gives what one call exports to take, from where w stands and until take wants
// no more. An empty page that does not go on is as if there were none, and too many that
// do are an error.
func (s *source) pages(ctx ctx, revision string, w *way, take func(*v1.ExportBulkRelationshipsResponse) bool) error {
	calling, silence, end := s.hear(ctx)
	defer end()
	stream, err := s.permissions.ExportBulkRelationships(calling, &v1.ExportBulkRelationshipsRequest{Consistency: at(revision), OptionalCursor: w.last})
	if err != nil {
		return heard(calling, err)
	}
	for {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return heard(calling, err)
		case len(page.GetRelationships()) == 0 && w.stands(page.GetAfterResultCursor()):
			continue
		case page.GetAfterResultCursor() == nil:
			return errNoCursor
		case !w.move(page.GetAfterResultCursor()):
			return errNoWay
		}
		w.empty++
		if len(page.GetRelationships()) > 0 {
			w.empty = 0
		}
		if w.empty >= emptyPagesMax {
			return errEmptyPages
		}
		silence.Stop() // It is this side that is waited for.
		if !take(page) {
			return nil
		}
		silence.Reset(s.silence)
	}
}
