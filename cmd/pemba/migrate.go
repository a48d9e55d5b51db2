package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/authzed"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

func newMigrate() *cobra.Command {
	return newGroup("migrate", "Copy schema and tuples from another server", newMigrateFromSpiceDB())
}

func newMigrateFromSpiceDB() *cobra.Command {
	m := migration{heldMax: heldDefault}
	m.from.silenceMin = silenceMinDefault
	cmd := &cobra.Command{
		Use:   "from-spicedb",
		Short: "Copy schema and relationships from a SpiceDB, and compare answers",
		Long: `From-spicedb copies schema and relationships from a server that speaks
authzed.api.v1, a SpiceDB or a Pemba, to a store that has no tuples, and no schema
or the same. What is copied is the state of the source at one revision; what is
written there later is not. Relationships that have expired are left out.

All tuples become visible at one revision, or none does, up to as many as the
server allows (10,000,000 unless it was started otherwise). With --batches there
may be more: they are written in batches, each at a revision of its own, and whoever
goes on with them sends all of them again.

When the source is lost it goes on behind the last page, for --from-patience. When it
answers nothing for as long, and for ten seconds, the command fails.
However else it is cut off, it can be gone on with: it says the command line, with
--import-id and --from-revision, that reads the source at the same revision again
and sends what the store does not have. The store forgets an import that nobody
goes on with for 24 hours, and the source its revision after some time of its own.

At the end the tuples are counted, and --verify questions asked of both servers at
the revisions that were read and written, without context: for relationships drawn
at random, a relation or permission of the object, and its subject or another.
Each relation and permission of every type that has relationships is asked for.
When answers differ, differences are listed and the command fails; what was copied
stays. Questions that the source refuses, as those about cycles, are counted. The
same --seed draws the same questions.`,
		Example: `  pemba migrate from-spicedb --from spicedb.internal:50051 --from-tls --from-key $KEY
  pemba migrate from-spicedb --from 127.0.0.1:50051 --from-key $KEY --addr 127.0.0.1:50061 --store blog --verify 10000`,
		Args: noArguments,
	}
	m.addFlags(cmd)
	m.from.addFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&m.batches, "batches", false, "write in batches, each at a revision of its own")
	f.StringVar(&m.id, "import-id", "", "go on with the import of this `id`")
	f.StringVar(&m.revision, "from-revision", "", "go on with the migration of this revision of the source, the `token` that it named")
	addChunkBytes(cmd, &m.chunkBytes)
	f.IntVar(&m.verify, "verify", 1000, "how many questions to ask of both servers; 0 for none")
	f.Uint64Var(&m.seed, "seed", 0, "the seed by which questions are drawn; 0 for any")
	addQuiet(cmd, &m.quiet)
	before(cmd, func() error {
		switch {
		case m.batches && f.Changed("import-id"):
			return errors.New("--batches and --import-id exclude each other: what is written in batches is gone on with by --from-revision alone")
		case m.id != "" && m.revision == "":
			return errors.New("--import-id needs the --from-revision of the same migration")
		case m.revision != "" && m.id == "" && !m.batches:
			return errors.New("--from-revision goes on with a migration, and needs its --import-id or --batches")
		case m.verify < 0 || m.verify > verifyMax:
			return fmt.Errorf("--verify %d: 0 to %d are allowed", m.verify, verifyMax)
		}
		return needTexts(cmd, "import-id", "from-revision")
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return m.run(cmd) }
	return cmd
}

// A migration holds the flags of migrate from-spicedb, and what becomes of it.
type migration struct {
	connection
	from sourceConnection

	batches      bool
	id, revision string
	verify       int
	seed         uint64
	quiet        bool
	chunkBytes   int

	cmd    *cobra.Command
	source *source
	target *client.Client

	// schema is that of the source, as it was read by this command. compiled is that of
	// the store, nil until relationships are read; it bounds their types.
	schema   string
	compiled *schema.Schema
	// ownStore says that the key has a store of its own, as on a server with --testing,
	// and may see no other. It is known once the store was asked for.
	ownStore bool
	// committed is where the import became visible that is gone on with, nil if it did
	// not before this command began; committedTuples is how many tuples it had.
	committed       *pembav1.Zookie
	committedTuples uint64
	// committing says that everything was handed over and the commit asked for.
	committing bool
	// held are the tuples with an expiration, heldBytes about how much memory they
	// take; overflowed says that they were too many, and are read once more.
	// Invariant: heldBytes <= heldMax, or overflowed.
	held       []graph.Tuple
	heldBytes  int
	heldMax    int
	overflowed bool
	// recent are the last tuples that were added, for the one that the server
	// refuses. Invariant: added is their count, and tuple n < added is
	// recent[n % len(recent)] if added - n <= len(recent).
	recent []graph.Tuple
	added  uint64
	// keysRefused names the flags of keys that were refused, so that the same are of no
	// use.
	keysRefused []string
	// skipped counts the relationships that the source gave although they had
	// expired.
	skipped uint64
	expiry  expirations
	sample  *sample
}

// heldDefault bounds the memory of the tuples that are held.
const heldDefault = 64 << 20

// recentTuples is how many tuples can be on the way to the server at most, and some.
const recentTuples = 64 << 10

func (m *migration) run(cmd *cobra.Command) (err error) {
	m.cmd = cmd
	for m.seed == 0 {
		m.seed = rand.Uint64() //nolint:gosec // It draws questions; nothing has to be hard to guess.
	}
	if m.source, err = m.from.dial(cmd.Context()); err != nil {
		return err
	}
	defer func() {
		if closeErr := m.source.client.Close(); err == nil {
			err = closeErr
		}
	}()
	m.source.lost = func(err error) {
		_ = m.tell("%s\n", printable(m.tryingAgain(err))) // The work goes on whether or not anybody hears of it.
	}
	return m.call(cmd, m.migrate)
}

func (m *migration) migrate(ctx ctx, target *client.Client) error {
	m.target = target
	goneOn := m.revision != ""
	if goneOn {
		if err := m.judgeGoneOn(ctx); err != nil {
			return err
		}
	} else if err := m.writeSchema(ctx); err != nil {
		return err
	}
	if !goneOn && !m.batches {
		m.id = client.NewImportID()
	}
	// Who kills the process hears of nothing at its end.
	if err := m.tell("if it is cut off, this goes on with it%s:\n  %s\n", m.sameKeys(), m.commandAgain()); err != nil {
		return err
	}
	written, changed := m.committed, uint64(0)
	if m.committed != nil {
		// What expired since cannot be sent again, and nothing has to be.
		if err := m.recount(ctx); err != nil {
			return m.unverified(m.committed, err)
		}
	} else {
		answer, err := m.copy(ctx)
		if err != nil {
			return err
		}
		written, changed = answer.GetWrittenAt(), answer.GetChanged()
	}
	result := migrationJSON{
		Relationships: m.added, Changed: changed, Expired: m.skipped, DoneBefore: m.committed != nil,
		Zookie: written.GetToken(), FromRevision: m.revision, Seed: m.seed,
	}
	if err := m.compare(ctx, written, &result); err != nil {
		return m.unverified(written, err)
	}
	if err := m.print(&result); err != nil {
		return err
	}
	return result.verdict()
}

// unverified is the error of a migration that is visible and could not be compared
// with the source.
func (m *migration) unverified(written *pembav1.Zookie, err error) error {
	left := m.again("verifies it again")
	var fromSource *sourceError
	if errors.As(err, &fromSource) && fromSource.code == codes.OutOfRange {
		left = "the source does not have the revision any more that was copied, so that nothing can be compared with it"
	}
	return fmt.Errorf("all is copied and visible at zookie %s, and could not be verified: %s; %s", written.GetToken(), m.explain(err), left)
}

// explain is explainError, and names the server that is written to where the
// connection to it was lost: else nobody knew which of the two it was.
func (m *migration) explain(err error) string { return m.named(err, explainError(m.cmd, err)) }

func (m *migration) named(err error, text string) string {
	var fromTarget interface{ GRPCStatus() *status.Status }
	if reason, _ := reasonOf(err); reason == "" && errors.As(err, &fromTarget) {
		return fmt.Sprintf("the server at %s: %s (%s)", m.addr, text, fromTarget.GRPCStatus().Code())
	}
	return text
}

// tryingAgain says what the source failed by, and that it is asked again.
func (m *migration) tryingAgain(err error) string {
	return fmt.Sprintf("%s; trying again for %v", err, m.source.patience)
}

// tell writes to the standard error what somebody may want to know meanwhile.
func (m *migration) tell(format string, args ...any) error {
	if m.quiet {
		return nil
	}
	_, err := fmt.Fprintf(m.cmd.ErrOrStderr(), format, args...)
	return err
}

// again says what a command line does that goes on with this migration.
func (m *migration) again(does string) string {
	return "this " + does + m.sameKeys() + ": " + m.commandAgain()
}

// sameKeys names the keys that the command line needs and does not show.
func (m *migration) sameKeys() string {
	var given []string
	for _, name := range []string{"key", "from-key"} {
		if m.cmd.Flags().Changed(name) && !slices.Contains(m.keysRefused, name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) == 0 {
		return ""
	}
	return ", with the same " + strings.Join(given, " and ")
}

// commandAgain is the command line that goes on with this migration.
func (m *migration) commandAgain() string {
	line := commandAgain(m.cmd, "key", "from-key", "import-id", "from-revision", "seed", "chunk-bytes")
	if m.chunkBytes > 0 {
		line += fmt.Sprintf(" --chunk-bytes %d", m.chunkBytes)
	}
	if m.id != "" {
		line += " --import-id " + m.id
	}
	// It draws the same questions as this one.
	return line + fmt.Sprintf(" --from-revision %s --seed %d", shellQuote(m.revision), m.seed)
}

// forgetting is the command line that forgets what the store has of the import.
func (m *migration) forgetting() string {
	line := typed("pemba tuple import")
	m.cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if (f.Changed || fromEnvironment(f)) && slices.Contains([]string{"addr", "store", "tls", "ca-cert", "client-cert", "client-key", "insecure-key"}, f.Name) {
			line += " --" + f.Name + "=" + shellQuote(f.Value.String())
		}
	})
	return line + " --abort --import-id " + m.id
}

// stored returns the schema of the store, empty if it has none, and how many tuples
// it has.
func (m *migration) stored(ctx ctx) (schema string, tuples uint64, err error) {
	answer, err := m.target.Stores.GetStore(ctx, &pembav1.GetStoreRequest{Store: m.store})
	if err != nil {
		return "", 0, err
	}
	m.ownStore = m.store == "" && answer.GetStore().GetName() != graph.DefaultStoreName
	written, err := m.target.Schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: m.store, Consistency: client.Linearizable()})
	if reason, _ := client.Reason(err); err != nil && reason != engine.NoSchema.String() {
		return "", 0, err
	}
	return written.GetSchema(), answer.GetStore().GetTuples(), nil
}

// where names the store that is written to.
func (m *migration) where() string {
	switch {
	case m.ownStore:
		return "the key's store at " + m.addr
	case m.store == "":
		return "the default store at " + m.addr
	}
	return fmt.Sprintf("the store %q at %s", m.store, m.addr)
}

// otherStore is what helps when a store cannot be written to.
func (m *migration) otherStore() string {
	if m.ownStore {
		return "give another --key, which has a store of its own on this server for tests"
	}
	return "name an empty store by --store; \"pemba store create NAME\" makes one"
}

// flagsOfStore names the flags that choose the store.
func (m *migration) flagsOfStore() string {
	if m.ownStore {
		return "--key and --addr"
	}
	return "--store and --addr"
}

// writeSchema reads the schema of the source and the revision to copy, and writes it
// to a store that has none.
func (m *migration) writeSchema(ctx ctx) error {
	var err error
	if m.schema, m.revision, err = m.source.readSchema(ctx); err != nil {
		return err
	}
	stored, tuples, err := m.stored(ctx)
	switch {
	case err != nil:
		return err
	case tuples > 0:
		return fmt.Errorf("%s has %d tuples already; %s (a migration that was cut off is gone on with by the --import-id and --from-revision that it named)",
			m.where(), tuples, m.otherStore())
	case stored == "":
		if err := m.writeText(ctx); err != nil {
			return fmt.Errorf("the schema of the source is refused: %s; nothing was copied", m.explainSchema(err))
		}
	default:
		differs, err := m.schemaDiffers(ctx, nil)
		if err != nil {
			return err
		}
		if differs != "" {
			return fmt.Errorf("%s has a schema already, and that of the source differs in %s; %s", m.where(), differs, m.otherStore())
		}
	}
	return nil
}

// writeText makes the schema of the source that of the store. What pemba.v1 has for a
// misspelling, as an arrow to a name that there is not, the API that the schema comes
// from may take: it is asked then. That API does not take every name, so that it is not
// asked first.
func (m *migration) writeText(ctx ctx) error {
	_, err := m.target.Schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: m.store, Schema: m.schema})
	if reason, _ := client.Reason(err); reason != engine.SchemaType.String() {
		return err
	}
	if m.store != "" { // Else the same store is meant, be it that of the key itself.
		ctx = metadata.AppendToOutgoingContext(ctx, api.StoreHeader, m.store)
	}
	_, other := v1.NewSchemaServiceClient(m.target.Conn()).WriteSchema(ctx, &v1.WriteSchemaRequest{Schema: m.schema})
	switch status.Code(other) {
	case codes.FailedPrecondition, codes.InvalidArgument, codes.Unimplemented:
		return err // It has mistakes for both, or the server has no other API.
	}
	return other
}

// schemaDiffers compares the schema that the store had at a zookie, or that it has
// if that is nil, with that of the source. It says in how many places they differ, and
// the first of them; where they are the same it says nothing.
func (m *migration) schemaDiffers(ctx ctx, at *pembav1.Zookie) (string, error) {
	r := &pembav1.DiffSchemaRequest{Store: m.store, To: &pembav1.DiffSchemaRequest_ToSchema{ToSchema: m.schema}}
	if at != nil {
		r.From = &pembav1.DiffSchemaRequest_FromZookie{FromZookie: at}
	}
	difference, err := m.target.Schemas.DiffSchema(ctx, r)
	if err != nil {
		return "", fmt.Errorf("the schema of the source cannot be compared with that of %s: %s", m.where(), m.explainSchema(err))
	}
	changes := difference.GetChanges()
	if len(changes) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%d places, the first: %s", len(changes), brief(changes[0].GetText(), sourceTextMax)), nil
}

// explainSchema is explain for a request that holds the schema of the source. A server
// to which the request is too large advises to send several, which no schema can be.
func (m *migration) explainSchema(err error) string {
	if reason, metadata := reasonOf(err); reason == requestTooLarge {
		return fmt.Sprintf("it has %d bytes; the server at %s takes schemas of at most %d bytes unless its --limit-schema-bytes says otherwise, and requests of at most %s (--limit-request-bytes) (%s)",
			len(m.schema), m.addr, api.DefaultLimits().SchemaBytes, metadata["limit"], reason)
	}
	return m.explain(err)
}

// judgeGoneOn refuses to go on with a migration of which the store knows nothing, and
// finds out whether it is visible already.
func (m *migration) judgeGoneOn(ctx ctx) error {
	stored, tuples, err := m.stored(ctx)
	switch {
	case err != nil:
		return err
	case stored == "":
		return fmt.Errorf("%s has no schema, so that no migration to it was begun; leave out --from-revision and --import-id to begin one, or name the store of the migration by %s", m.where(), m.flagsOfStore())
	}
	if m.batches {
		err = m.judgeBatches(ctx, tuples)
	} else {
		err = m.judgeImport(ctx, tuples)
	}
	if err != nil {
		return err
	}
	if m.schema, _, err = m.source.readSchema(ctx); err != nil {
		m.noteKey(err)
		return fmt.Errorf("%w; %s", err, m.again("goes on with it"))
	}
	if m.committed != nil {
		return nil // It is compared when all else is.
	}
	differs, err := m.schemaDiffers(ctx, nil)
	if err != nil {
		return err
	}
	if differs != "" {
		return fmt.Errorf("the schema of the source differs from that of %s in %s; "+
			"either %s do not name the store of the migration, or one of the schemas was changed since it began: then begin anew with an empty store",
			m.where(), differs, m.flagsOfStore())
	}
	return nil
}

// judgeImport looks up the import that is gone on with.
func (m *migration) judgeImport(ctx ctx, tuples uint64) error {
	earlier, err := m.target.Tuples.GetImport(ctx, &pembav1.GetImportRequest{Store: m.store, ImportId: m.id})
	if reason, _ := client.Reason(err); reason == engine.StageUnknown.String() {
		if tuples == 0 {
			return nil // It was cut off before anything came.
		}
		return fmt.Errorf("%s has %d tuples already, and nothing of the import %s; %s name the store of the migration that is gone on with",
			m.where(), tuples, m.id, m.flagsOfStore())
	}
	if err != nil {
		return err
	}
	m.committed, m.committedTuples = earlier.GetCommittedAt(), earlier.GetTuples()
	return nil
}

// The metadata of what is written in batches, by which the store of a migration is
// known again.
const (
	markKey = "from_revision"
	// markSearchMax is how many messages of the change log are read to find it. The
	// store had no tuples when the migration began, so that it stands at the start.
	markSearchMax = 1000
)

// judgeBatches refuses to write over tuples of a store to which this migration wrote
// nothing.
func (m *migration) judgeBatches(ctx ctx, tuples uint64) error {
	if tuples == 0 {
		return nil
	}
	read := 0
	for changes, err := range m.target.ReadChanges(ctx, &pembav1.ReadChangesRequest{Store: m.store}) {
		if err != nil {
			return fmt.Errorf("whether the migration wrote the %d tuples of %s cannot be read in its change log: %s", tuples, m.where(), m.explain(err))
		}
		if changes.GetMetadata().GetFields()[markKey].GetStringValue() == m.revision {
			return nil
		}
		if read++; read == markSearchMax {
			break
		}
	}
	return fmt.Errorf("%s has %d tuples already, and by its change log none of them are of this migration; %s name the store of the migration that is gone on with, or begin anew with an empty one",
		m.where(), tuples, m.flagsOfStore())
}

// recount reads the relationships of a migration that is visible already, as copy
// does, and sends nothing.
func (m *migration) recount(ctx ctx) error {
	p := m.startProgress(ctx)
	defer p.close()
	began := time.Now()
	m.expiry = newExpirations(began)
	m.sample = newSample(m.seed, m.verify)
	var err error
	if m.compiled, err = m.compiledAt(ctx, client.ExactlyAt(m.committed)); err != nil {
		return err
	}
	for t, err := range m.living(ctx, began) {
		if err != nil {
			m.noteKey(err)
			return err
		}
		if t.ValidUntil != 0 {
			m.expiry.add(t.ValidUntil.Time())
		}
		m.added++
		p.done.Add(1)
		p.part.Add(1)
		m.sample.add(t)
	}
	// There may be fewer, for what expired since it was committed; that is found by the
	// number of tuples of the store.
	if m.added > m.committedTuples {
		return fmt.Errorf("the import %s made %d tuples visible, and the source has %d at --from-revision; they are not of one migration",
			m.id, m.committedTuples, m.added)
	}
	return nil
}

// startProgress begins to tell how far it is, and when the source is lost.
func (m *migration) startProgress(ctx ctx) *progress {
	p := startProgress(m.cmd, m.quiet)
	if !m.quiet {
		p.whole.Store(m.source.count(ctx))
		m.source.lost = func(err error) {
			p.goOn() // It may wait for another reason already.
			p.wait("the source", m.tryingAgain(err))
		}
		m.source.found = p.goOn
	}
	return p
}

// noteKey remembers that a key was refused.
func (m *migration) noteKey(err error) {
	var fromSource *sourceError
	if errors.As(err, &fromSource) && slices.Contains([]codes.Code{codes.Unauthenticated, codes.PermissionDenied}, fromSource.code) {
		m.keysRefused = append(m.keysRefused, "from-key")
	}
}

// copy reads the relationships and sends them.
func (m *migration) copy(ctx ctx) (*pembav1.ImportTuplesResponse, error) {
	p := m.startProgress(ctx)
	defer p.close()
	var err error
	if m.compiled, err = m.compiledAt(ctx, client.Linearizable()); err != nil {
		return nil, err
	}
	config := client.ImportConfig{Store: m.store, Batches: m.batches, ID: m.id, ChunkBytes: m.chunkBytes}
	if m.batches {
		// Nothing is replaced in a store that had no tuples a moment ago.
		config.Create = !m.cmd.Flags().Changed("from-revision")
		config.Metadata = map[string]any{markKey: m.revision}
	}
	im, err := m.target.Import(ctx, config)
	if err != nil {
		return nil, err
	}
	defer im.Cancel()
	if err := m.send(ctx, im, p); err != nil {
		return nil, m.failed(im, err)
	}
	if m.added == 0 && im.Known() == 0 {
		return &pembav1.ImportTuplesResponse{}, nil // There is nothing to make visible.
	}
	p.last.Store(!m.batches)
	m.committing = true
	answer, err := im.Commit()
	if err != nil {
		return nil, m.failed(im, err)
	}
	return answer, nil
}

// send adds all relationships, those that never expire first: whoever goes on with
// an import must add again what it began with, and what expired since is no longer
// to be had.
func (m *migration) send(ctx ctx, im *client.Import, p *progress) error {
	// What is expired by then is not worth the way.
	began := time.Now()
	m.expiry = newExpirations(began)
	m.sample = newSample(m.seed, m.verify)
	m.recent = make([]graph.Tuple, 0, recentTuples)
	add := func(t graph.Tuple) error {
		if err := im.Add(t); err != nil {
			return err
		}
		m.remember(t)
		p.done.Add(1)
		p.part.Add(1)
		return nil
	}
	for t, err := range m.living(ctx, began) {
		if err != nil {
			return err
		}
		if t.ValidUntil != 0 {
			m.hold(t)
		} else if err := add(t); err != nil {
			return err
		}
		m.sample.add(t)
	}
	if !m.overflowed {
		for _, t := range m.held {
			m.expiry.add(t.ValidUntil.Time())
			if err := add(t); err != nil {
				return err
			}
		}
		return nil
	}
	for t, err := range m.tuples(ctx) {
		if err != nil {
			return err
		}
		if t.ValidUntil != 0 && t.ValidUntil.Time().After(began) {
			m.expiry.add(t.ValidUntil.Time())
			if err := add(t); err != nil {
				return err
			}
		}
	}
	return nil
}

// errRelationship is wrapped by the error of a relationship that is no tuple.
var errRelationship = errors.New("the relationship of the source")

// tuples yields the relationships of the source as tuples, and at last an error if
// there is one.
func (m *migration) tuples(ctx ctx) func(yield func(graph.Tuple, error) bool) {
	return func(yield func(graph.Tuple, error) bool) {
		for page, err := range m.source.relationships(ctx, m.revision) {
			if err != nil {
				yield(graph.Tuple{}, err)
				return
			}
			for _, r := range page {
				t, err := authzed.Tuple(r)
				if err != nil {
					err = fmt.Errorf("%w %s: %s", errRelationship, brief(relationshipText(r), sourceTextMax), brief(status.Convert(err).Message(), sourceTextMax))
				}
				if !yield(t, err) || err != nil {
					return
				}
			}
		}
	}
}

// living yields those of tuples that had not expired at an instant, and counts the
// others. A tuple with names that the schema lacks is its last, with an error.
func (m *migration) living(ctx ctx, at time.Time) func(yield func(graph.Tuple, error) bool) {
	return func(yield func(graph.Tuple, error) bool) {
		for t, err := range m.tuples(ctx) {
			if err == nil && t.ValidUntil != 0 && !t.ValidUntil.Time().After(at) {
				m.skipped++
				continue
			}
			if err == nil {
				err = m.judge(&t)
			}
			if !yield(t, err) || err != nil {
				return
			}
		}
	}
}

// judge refuses a tuple with names that the schema lacks. The server would refuse it
// too, but sees those that expire at the end alone, and what is kept of each type until
// then is bounded by the types of the schema.
func (m *migration) judge(t *graph.Tuple) error {
	lacks := ""
	d, subject := m.compiled.Definition(t.Object.Type), m.compiled.Definition(t.Subject.Type)
	switch {
	case d == nil:
		lacks = fmt.Sprintf("type %q", t.Object.Type)
	case d.Relation(t.Relation) == nil:
		lacks = fmt.Sprintf("relation %q of %q", t.Relation, t.Object.Type)
	case subject == nil:
		lacks = fmt.Sprintf("type %q", t.Subject.Type)
	case t.Subject.Relation != "" && subject.Relation(t.Subject.Relation) == nil && subject.Permission(t.Subject.Relation) == nil:
		lacks = fmt.Sprintf("relation or permission %q of %q", t.Subject.Relation, t.Subject.Type)
	case t.Caveat != "" && m.compiled.Caveat(t.Caveat) == nil:
		lacks = fmt.Sprintf("caveat %q", t.Caveat)
	default:
		return nil
	}
	bare := graph.Tuple{Object: t.Object, Relation: t.Relation, Subject: t.Subject}
	return fmt.Errorf("%w %s: the schema has no %s", errRelationship, brief(bare.String(), sourceTextMax), brief(lacks, sourceTextMax))
}

// relationshipText names a relationship.
func relationshipText(r *v1.Relationship) string {
	t := graph.Tuple{
		Object:   graph.Object{Type: r.GetResource().GetObjectType(), ID: r.GetResource().GetObjectId()},
		Relation: r.GetRelation(),
		Subject: graph.Subject{
			Object:   graph.Object{Type: r.GetSubject().GetObject().GetObjectType(), ID: r.GetSubject().GetObject().GetObjectId()},
			Relation: r.GetSubject().GetOptionalRelation(),
		},
	}
	return t.String()
}

// hold keeps a tuple that expires, until there are too many of them.
func (m *migration) hold(t graph.Tuple) {
	if m.overflowed {
		return
	}
	m.held = append(m.held, t)
	m.heldBytes += 200 + len(t.Object.ID) + len(t.Subject.ID) + len(t.Context) +
		len(t.Object.Type) + len(t.Relation) + len(t.Subject.Type) + len(t.Subject.Relation) + len(t.Caveat)
	if m.heldBytes > m.heldMax {
		m.held, m.overflowed = nil, true
	}
}

// remember keeps the name of a tuple that was added.
func (m *migration) remember(t graph.Tuple) {
	t = graph.Tuple{Object: t.Object, Relation: t.Relation, Subject: t.Subject}
	if len(m.recent) < recentTuples {
		m.recent = append(m.recent, t)
	} else {
		m.recent[m.added%recentTuples] = t
	}
	m.added++
}

// failed says what an error of an import was about, and what is left of it. What is
// of no use any more is forgotten, unless the user named it.
func (m *migration) failed(im *client.Import, err error) error {
	// The context of the command may have ended, and this is short.
	ctx, cancel := context.WithTimeout(context.Background(), forgetPatience)
	defer cancel()
	reason, metadata := reasonOf(err)
	text := m.named(err, explainImport(m.cmd, err))
	var refused *client.ImportError
	if errors.As(err, &refused) && refused.Number < m.added && m.added-refused.Number <= uint64(len(m.recent)) {
		text = brief(m.recent[refused.Number%recentTuples].String(), sourceTextMax) + ": " + text
	}
	if limit := metadata["limit"]; reason == engine.StageTooLarge.String() && limit != "" {
		text = "the source has more than the " + limit + " relationships that may become visible at once; migrate with --batches"
		if metadata["field"] == "" { // It is not about what is sent.
			text = m.where() + " has " + limit + " imports that were not committed, and no more are allowed; \"pemba tuple import --abort --all\" forgets them"
		}
		text += " (" + reason + ")"
	}
	var fromSource *sourceError
	end := endOfImport(err, m.committing)
	if errors.As(err, &fromSource) && !fromSource.lasting() {
		end = importHindered
	}
	m.noteKey(err)
	goneOn := m.cmd.Flags().Changed("from-revision")
	left := ""
	switch {
	case errors.As(err, &fromSource) && fromSource.code == codes.OutOfRange && m.batches:
		left = "the source does not have the revision any more at which the migration began; begin anew with an empty store"
	case errors.As(err, &fromSource) && fromSource.code == codes.OutOfRange && goneOn:
		left = "the source does not have the revision any more at which the migration began; begin anew, without --from-revision and --import-id, after: " + m.forgetting()
	case m.batches:
		if size, ok := smallerChunks(m.cmd, metadata); ok && reason == requestTooLarge {
			m.chunkBytes = size // The same chunks would be refused again.
		}
		left = strings.TrimPrefix(leftOfBatches(err), "; ") + "; " + m.again("goes over it again, and on")
	case reason == engine.StageMismatch.String(), errors.Is(err, client.ErrImportMismatch):
		left = "go on with it by the --chunk-bytes that it was begun with, if that was another; " +
			"else what the store has of the migration is not what the source gives now, as when relationships have expired since, or another version of this command began it: " +
			"then begin anew, without --from-revision and --import-id, after: " + m.forgetting()
	case reason == engine.StageStale.String(), reason == requestTooLarge && goneOn:
		left = "nothing can be seen of it; begin anew, without --from-revision and --import-id, after: " + m.forgetting()
	case end == importUncertain:
		left = "whether it is visible is not known; " + m.again("finishes it, or says that it was")
	case end == importHindered || goneOn || !beyondMending(err):
		left = "nothing can be seen of it; " + m.again("goes on with it")
	default:
		left = "no relationships were copied"
		if err := im.Forget(ctx); err != nil {
			left += "; what the store has of them is forgotten in some time, or by: " + m.forgetting()
		}
	}
	im.Cancel()
	return fmt.Errorf("%s; %s", text, left)
}

// beyondMending reports whether an import failed by what is the same in the next
// attempt: by a relationship, by their number, by the size of their chunks, or by what the
// source does not have or does not do. A key can be mended, and rights can.
func beyondMending(err error) bool {
	var refused *client.ImportError
	var fromSource *sourceError
	reason, _ := reasonOf(err)
	switch {
	case errors.As(err, &fromSource):
		return fromSource.tooLarge || slices.Contains([]codes.Code{codes.OutOfRange, codes.InvalidArgument, codes.Unimplemented, codes.DataLoss}, fromSource.code)
	case errors.As(err, &refused), errors.Is(err, errRelationship):
		return true
	}
	return reason == engine.StageTooLarge.String() || reason == engine.AlreadyExists.String() || reason == requestTooLarge
}

// A migrationJSON is what became of a migration in the form of -o json.
type migrationJSON struct {
	// Relationships is how many were read and sent, Changed how many tuples that
	// made or changed; Expired were read and left out.
	Relationships uint64 `json:"relationships"`
	Changed       uint64 `json:"changed"`
	Expired       uint64 `json:"expired"`
	// DoneBefore says that all was visible before this command began, which only
	// verified it.
	DoneBefore bool `json:"done_before,omitempty"`
	// Counted is how many tuples the store has at Zookie.
	Counted uint64 `json:"counted"`
	// Checks is how many questions were asked and answered by both servers,
	// Differing how many of them otherwise; RefusedAtSource come besides, and
	// FirstRefusal is one of these with what the source said.
	Checks          int              `json:"checks"`
	Differing       int              `json:"differing"`
	RefusedAtSource int              `json:"refused_at_source"`
	FirstRefusal    string           `json:"first_refusal,omitempty"`
	Seed            uint64           `json:"seed,string"`
	Zookie          string           `json:"zookie"`
	FromRevision    string           `json:"from_revision"`
	Differences     []differenceJSON `json:"differences,omitempty"`

	// schemaDiffers says how the schema of the store differs from that of the source,
	// empty if it does not.
	schemaDiffers string
	// countWrong says that Counted is not what was sent, less what has expired
	// since.
	countWrong bool
}

// A differenceJSON is a question that the servers answer differently.
type differenceJSON struct {
	Question string `json:"question"`
	Source   string `json:"source"`
	Target   string `json:"target"`
}

func (m *migration) print(r *migrationJSON) error {
	if m.json() {
		return printJSON(m.cmd, r)
	}
	text := fmt.Sprintf("copied %d relationships, changed %d, zookie %s\n", r.Relationships, r.Changed, r.Zookie)
	if r.Zookie == "" {
		text = "copied the schema; there are no relationships\n"
	}
	if r.DoneBefore {
		text = fmt.Sprintf("was done already: %d relationships, zookie %s\n", r.Relationships, r.Zookie)
	}
	if r.Expired > 0 {
		text += fmt.Sprintf("left out %d that have expired\n", r.Expired)
	}
	if m.verify > 0 {
		text += fmt.Sprintf("checks compared: %d, differing: %d, refused at the source: %d, seed %d\n", r.Checks, r.Differing, r.RefusedAtSource, r.Seed)
	}
	if r.RefusedAtSource > 0 {
		text += fmt.Sprintf("  the first that was refused: %s\n", printable(r.FirstRefusal))
	}
	for _, d := range r.Differences {
		text += fmt.Sprintf("  %s: %s at the source, %s here\n", printable(d.Question), printable(d.Source), printable(d.Target))
	}
	if more := r.Differing - len(r.Differences); more > 0 {
		text += fmt.Sprintf("  and %d more\n", more)
	}
	return printf(m.cmd, "%s", text)
}

// verdict is the error of a migration that was found to differ, or of which nothing
// could be found out.
func (r *migrationJSON) verdict() error {
	var found []string
	if r.schemaDiffers != "" {
		found = append(found, "its schema is not the one that the source has now, they differ in "+r.schemaDiffers)
	}
	if r.countWrong {
		found = append(found, fmt.Sprintf("%d relationships were copied, and the store has %d tuples", r.Relationships, r.Counted))
	}
	if r.Differing > 0 {
		found = append(found, fmt.Sprintf("%d of %d checks have another answer than at the source", r.Differing, r.Checks))
	}
	switch {
	case len(found) == 0 && r.Checks == 0 && r.RefusedAtSource > 0:
		return fmt.Errorf("all is copied, and the answers could not be compared: the source refused all %d questions, the first: %s", r.RefusedAtSource, r.FirstRefusal)
	case len(found) == 0:
		return nil
	}
	return errors.New("the store is not like the source: " + strings.Join(found, "; "))
}
