// Package client speaks pemba.v1 to a server.
//
// A Client is a connection with the generated service clients on it, and a few
// methods for what is done most, in the nouns of package graph:
//
//	c, err := client.Dial(ctx, client.Config{Addr: "127.0.0.1:50051", Key: key})
//	...
//	defer c.Close()
//	written, err := c.WriteTuples(ctx, graph.Touch, tuple)
//	...
//	answer, err := c.Check(ctx, client.Question{
//		Object: object, Permission: "view", Subject: subject,
//		Consistency: client.AtLeast(written.GetWrittenAt()), // sees the write, whoever answers
//	})
//
// What streams comes as an iterator. A loop that ends early ends the stream.
//
//	for found, err := range c.LookupResources(ctx, request) { ... }
//
// Import writes any number of tuples at one revision, ExportTuples reads them
// back, and Watch follows what changes, over lost connections too.
//
// Questions and other reads that find the server unavailable are asked again a
// few times. Writes never are: whether one that was cut off took place only the
// caller can find out. Errors are those of gRPC; Reason tells them apart.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// Config says which server to speak to, and as whom.
type Config struct {
	// Addr is the server's gRPC address, as "127.0.0.1:50051".
	Addr string
	// Key is the key to present; empty for none.
	Key string
	// Store is the store that the methods of Client ask; empty for the default.
	Store string
	// TLS says how to encrypt, and whom to trust; nil means not to. LoadTLS makes
	// one of files. It must not be changed any more.
	TLS *tls.Config
	// InsecureKey allows to send the key without encryption to another machine,
	// where whoever is on the way can read it. To this machine it may always go.
	InsecureKey bool
}

// ErrKeyExposed means that the key would go unencrypted to another machine.
var ErrKeyExposed = errors.New("the key would go unencrypted to another machine")

// A DialError says why Dial has no connection.
type DialError struct {
	// Addr is where the server was looked for.
	Addr string
	// Answered says that somebody is there, with whom there is no speaking: TLS
	// did not come about, or it is not gRPC that is spoken.
	Answered bool
	// HTTP says that the answer was one of HTTP/1, as a server's HTTP address
	// gives it. Then Answered is true.
	HTTP bool
	// TLS says what of Config.TLS may be wrong. It is told from what the two sides
	// said to each other, and a server seldom says much.
	TLS TLSProblem
	// Err is why.
	Err error
}

// A TLSProblem is what of Config.TLS keeps a client from a server.
type TLSProblem int

const (
	// NoTLSProblem means that it is not TLS, as far as can be told.
	NoTLSProblem TLSProblem = iota
	// TLSMissing means that the client does not encrypt, and the server seems to.
	TLSMissing
	// TLSUnwanted means that the client encrypts, and the server seems not to.
	TLSUnwanted
	// UnknownAuthority means that none that the client trusts has signed the
	// server's certificate.
	UnknownAuthority
	// OtherServer means that the server's certificate is for other names than that in
	// Config.Addr.
	OtherServer
	// ClientCertificateMissing means that the server seems to let in only clients
	// that show a certificate, and this one has none.
	ClientCertificateMissing
	// ClientCertificateRefused means that the server seems not to take the
	// certificate that the client has.
	ClientCertificateRefused
)

func (e *DialError) Error() string {
	return fmt.Sprintf("client: cannot reach a server at %s: %v", e.Addr, e.Err)
}

// Unwrap returns why.
func (e *DialError) Unwrap() error { return e.Err }

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	if c.Addr == "" {
		return errors.New("client: no address is given; it has the form host:port")
	}
	// Of "https://host" the port would be "//host".
	if _, port, err := net.SplitHostPort(c.Addr); err != nil || port == "" || strings.Contains(c.Addr, "/") {
		return fmt.Errorf("client: the address %q does not have the form host:port, as 127.0.0.1:50051", c.Addr)
	}
	if c.Key != "" && c.TLS == nil && !c.InsecureKey && !isHere(c.Addr) {
		return fmt.Errorf("client: %s: %w", c.Addr, ErrKeyExposed)
	}
	return nil
}

// isHere reports whether an address certainly is one of this machine. Names but
// for localhost are not asked for: what they mean may change between two looks.
func isHere(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// LoadTLS makes the configuration of TLS out of files in PEM form. caCert holds
// the certificates of the authorities to trust; empty means those of the system.
// cert and key are what this client shows of itself to a server that asks for
// it; both are empty, or none.
func LoadTLS(caCert, cert, key string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caCert != "" {
		pem, err := os.ReadFile(caCert)
		if err != nil {
			return nil, fmt.Errorf("client: authorities to trust: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("client: authorities to trust: %s holds no certificate in PEM form", caCert)
		}
	}
	if (cert == "") != (key == "") {
		return nil, errors.New("client: a certificate and its key belong together, and only one of them is given")
	}
	if cert != "" {
		own, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client: certificate of the client: %w", err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	return config, nil
}

// A Client is a connection to a server. It is safe for concurrent use.
type Client struct {
	// Stores, Schemas, Tuples, Permissions and Watches are the services
	// themselves. Their requests name the store; those of Cluster are about none.
	Stores      pembav1.StoreServiceClient
	Schemas     pembav1.SchemaServiceClient
	Tuples      pembav1.TupleServiceClient
	Permissions pembav1.PermissionServiceClient
	Watches     pembav1.WatchServiceClient
	Cluster     pembav1.ClusterServiceClient

	conn  *grpc.ClientConn
	store string
}

// ResponseBytesMax is how many bytes an answer may have, that of a bulk check or a
// deep explanation. A Client refuses a larger one with RESOURCE_EXHAUSTED.
const ResponseBytesMax = 64 << 20

// retries makes gRPC ask again what changes nothing, when the server cannot be
// reached or says so. A stream is only begun again before anything came of it.
const retries = `{"methodConfig": [{
	"name": [
		{"service": "pemba.v1.PermissionService"},
		{"service": "pemba.v1.StoreService", "method": "GetStore"},
		{"service": "pemba.v1.StoreService", "method": "ListStores"},
		{"service": "pemba.v1.SchemaService", "method": "ReadSchema"},
		{"service": "pemba.v1.SchemaService", "method": "ListSchemaVersions"},
		{"service": "pemba.v1.SchemaService", "method": "DiffSchema"},
		{"service": "pemba.v1.SchemaService", "method": "TrySchema"},
		{"service": "pemba.v1.TupleService", "method": "ReadTuples"},
		{"service": "pemba.v1.TupleService", "method": "CountTuples"},
		{"service": "pemba.v1.TupleService", "method": "ExportTuples"},
		{"service": "pemba.v1.TupleService", "method": "GetImport"},
		{"service": "pemba.v1.WatchService", "method": "ReadChanges"},
		{"service": "pemba.v1.ClusterService", "method": "GetCluster"}
	],
	"retryPolicy": {
		"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 3,
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

// Dial connects to the server and returns when it can be reached, or with why
// it cannot, a *DialError. ctx bounds only that.
func Dial(ctx context.Context, config Config) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if config.TLS != nil {
		transport = credentials.NewTLS(config.TLS)
	}
	pause := backoff.DefaultConfig
	pause.BaseDelay, pause.MaxDelay = 100*time.Millisecond, 5*time.Second
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(ResponseBytesMax)),
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pause, MinConnectTimeout: 10 * time.Second}),
		// A server that is gone without a word is noticed by those who wait for
		// what it streams.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
	}
	if config.Key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{key: config.Key, encrypted: config.TLS != nil}))
	}
	conn, err := grpc.NewClient("passthrough:///"+config.Addr, options...)
	if err != nil {
		return nil, fmt.Errorf("client: %s: %w", config.Addr, err)
	}
	if err := reach(ctx, conn, config.TLS); err != nil {
		failure := &DialError{Addr: config.Addr, Err: err}
		var problem *dialProblem
		if errors.As(err, &problem) {
			failure.Answered, failure.HTTP, failure.TLS = problem.answered, problem.http, problem.tls
		}
		if closeErr := conn.Close(); closeErr != nil {
			failure.Err = errors.Join(err, closeErr)
		}
		return nil, failure
	}
	return &Client{
		Stores:      pembav1.NewStoreServiceClient(conn),
		Schemas:     pembav1.NewSchemaServiceClient(conn),
		Tuples:      pembav1.NewTupleServiceClient(conn),
		Permissions: pembav1.NewPermissionServiceClient(conn),
		Watches:     pembav1.NewWatchServiceClient(conn),
		Cluster:     pembav1.NewClusterServiceClient(conn),
		conn:        conn, store: config.Store,
	}, nil
}

// reach waits until conn is connected. At the first failure it asks for the
// reason, which only a call gives.
func reach(ctx context.Context, conn *grpc.ClientConn, encryption *tls.Config) error {
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.TransientFailure {
			_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			if err == nil {
				return nil // It came after all.
			}
			return newDialProblem(status.Convert(err).Message(), encryption)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// A dialProblem is what gRPC says of a failed connection.
type dialProblem struct {
	message        string
	answered, http bool
	tls            TLSProblem
}

func (p *dialProblem) Error() string { return p.message }

// newDialProblem takes the wrapping off what gRPC says of a failed connection,
// and says what the usual mistakes look like from this side.
func newDialProblem(message string, encryption *tls.Config) *dialProblem {
	const handshake, preface = "authentication handshake failed: ", "error reading server preface"
	p := &dialProblem{
		message:  message,
		answered: strings.Contains(message, handshake) || strings.Contains(message, preface),
	}
	for _, wrapping := range [...]string{"Error while dialing: ", handshake} {
		if _, problem, ok := strings.Cut(p.message, wrapping); ok {
			p.message = strings.TrimSuffix(problem, `"`)
		}
	}
	says := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(message, text) })
	}
	// Somebody was there, and ended the connection before he said anything of HTTP/2.
	left := says(preface, "failed to write client preface", "broken pipe", "connection reset by peer") && !says("dial tcp", handshake)
	switch {
	case says("looked like an HTTP/1.1 header"):
		p.message, p.http = "what answers there speaks HTTP/1 and not gRPC; it looks like the server's HTTP address", true
	case says("first record does not look like a TLS handshake"):
		p.message, p.tls = p.message+"; the server does not seem to encrypt", TLSUnwanted
	case says("certificate signed by unknown authority"):
		p.tls = UnknownAuthority
	case says("x509: certificate is valid for", "x509: cannot validate certificate for", "x509: certificate is not valid for any names"):
		p.tls = OtherServer
	case encryption == nil && left:
		p.message, p.answered, p.tls = p.message+"; the server may expect TLS", true, TLSMissing
	case encryption == nil:
	// An alert of the server is about what this side showed of itself. In TLS 1.3 it
	// comes after this side is done, or is lost when the server ends the connection.
	case len(encryption.Certificates) > 0 && says("remote error: tls: ") && says("certificate", "access denied"):
		p.tls = ClientCertificateRefused
	case len(encryption.Certificates) > 0 && left:
		p.message, p.answered, p.tls = p.message+"; the server may not take the certificate of the client", true, ClientCertificateRefused
	case says("tls: certificate required", "tls: bad certificate"):
		p.tls = ClientCertificateMissing
	case left:
		p.message, p.answered, p.tls = p.message+"; the server may want a certificate of the client", true, ClientCertificateMissing
	}
	return p
}

// Conn returns the connection itself, for services that a server has beside those
// of Client. It is the client's: Close ends it, and nobody else may.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close ends the connection and all calls on it.
func (c *Client) Close() error { return c.conn.Close() }

// bearer presents a key with each call.
type bearer struct {
	key string
	// encrypted makes gRPC refuse to send the key otherwise.
	encrypted bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.key}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.encrypted }

// AtLeast asks for a state that holds everything up to the zookie; nil asks for
// the newest of the node.
func AtLeast(z *pembav1.Zookie) *pembav1.Consistency {
	if z == nil {
		return nil
	}
	return &pembav1.Consistency{Requirement: &pembav1.Consistency_AtLeastAsFresh{AtLeastAsFresh: z}}
}

// ExactlyAt asks for the state at the zookie's revision.
func ExactlyAt(z *pembav1.Zookie) *pembav1.Consistency {
	return &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: z}}
}

// Linearizable asks for a state that holds everything acknowledged before.
func Linearizable() *pembav1.Consistency {
	return &pembav1.Consistency{Requirement: &pembav1.Consistency_Linearizable{Linearizable: true}}
}

// AsOf asks for the state as it was at a moment, with the schema of that moment
// and with the lifetimes of tuples judged at it.
func AsOf(t time.Time) *pembav1.Consistency {
	return &pembav1.Consistency{Requirement: &pembav1.Consistency_AsOf{AsOf: timestamppb.New(t)}}
}

// A Question is what Check asks.
type Question struct {
	Object graph.Object
	// Permission is a relation or permission of the object's type.
	Permission string
	Subject    graph.Subject
	// Context gives values for caveat parameters; Context says which Go values
	// are allowed. It may be nil.
	Context map[string]any
	// Consistency is nil for the newest state of the node that is asked.
	Consistency *pembav1.Consistency
	// Explain asks for the trace.
	Explain bool
}

// Check asks one question.
func (c *Client) Check(ctx context.Context, q Question) (*pembav1.CheckResponse, error) {
	r := &pembav1.CheckRequest{
		Store: c.store, Consistency: q.Consistency, Permission: q.Permission, Explain: q.Explain,
		Object:  api.ObjectMessage(q.Object),
		Subject: api.SubjectMessage(q.Subject),
	}
	if q.Context != nil {
		var err error
		if r.Context, err = Context(q.Context); err != nil {
			return nil, err
		}
	}
	return c.Permissions.Check(ctx, r)
}

// WriteTuples does the same operation with all tuples, at one revision or not at
// all. For preconditions, metadata and mixed operations there is Tuples.
func (c *Client) WriteTuples(ctx context.Context, operation graph.Operation, tuples ...graph.Tuple) (*pembav1.WriteTuplesResponse, error) {
	updates, err := Updates(operation, tuples...)
	if err != nil {
		return nil, err
	}
	return c.Tuples.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Store: c.store, Updates: updates})
}

// Updates returns the updates that do the same operation with each tuple.
func Updates(operation graph.Operation, tuples ...graph.Tuple) ([]*pembav1.TupleUpdate, error) {
	operations := map[graph.Operation]pembav1.TupleUpdate_Operation{
		graph.Touch:  pembav1.TupleUpdate_OPERATION_TOUCH,
		graph.Create: pembav1.TupleUpdate_OPERATION_CREATE,
		graph.Delete: pembav1.TupleUpdate_OPERATION_DELETE,
	}
	updates := make([]*pembav1.TupleUpdate, len(tuples))
	for i, t := range tuples {
		message, err := api.TupleMessage(t)
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		updates[i] = &pembav1.TupleUpdate{Operation: operations[operation], Tuple: message}
	}
	return updates, nil
}

// ReadTuples returns the tuples that r asks for. An empty store in r is filled
// in from the client's; r itself is not changed.
func (c *Client) ReadTuples(ctx context.Context, r *pembav1.ReadTuplesRequest) iter.Seq2[*pembav1.ReadTuplesResponse, error] {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return results(ctx, c.Tuples.ReadTuples, r)
}

// LookupResources returns the resources that r asks for; see ReadTuples.
func (c *Client) LookupResources(ctx context.Context, r *pembav1.LookupResourcesRequest) iter.Seq2[*pembav1.LookupResourcesResponse, error] {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return results(ctx, c.Permissions.LookupResources, r)
}

// LookupSubjects returns the subjects that r asks for; see ReadTuples.
func (c *Client) LookupSubjects(ctx context.Context, r *pembav1.LookupSubjectsRequest) iter.Seq2[*pembav1.LookupSubjectsResponse, error] {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return results(ctx, c.Permissions.LookupSubjects, r)
}

// fill sets the store of a request that names none.
func (c *Client) fill(store *string) {
	if *store == "" {
		*store = c.store
	}
}

// ExportTuples returns the tuples that r asks for in batches, which is faster
// than ReadTuples where there are many; see ReadTuples.
func (c *Client) ExportTuples(ctx context.Context, r *pembav1.ExportTuplesRequest) iter.Seq2[*pembav1.ExportTuplesResponse, error] {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return results(ctx, c.Tuples.ExportTuples, r)
}

// CountTuples says how many tuples match; see ReadTuples for the store.
func (c *Client) CountTuples(ctx context.Context, r *pembav1.CountTuplesRequest) (*pembav1.CountTuplesResponse, error) {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return c.Tuples.CountTuples(ctx, r)
}

// CountResources says how many results LookupResources has; see ReadTuples for
// the store.
func (c *Client) CountResources(ctx context.Context, r *pembav1.CountResourcesRequest) (*pembav1.CountResourcesResponse, error) {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return c.Permissions.CountResources(ctx, r)
}

// CountSubjects says how many results LookupSubjects has; see ReadTuples for the
// store.
func (c *Client) CountSubjects(ctx context.Context, r *pembav1.CountSubjectsRequest) (*pembav1.CountSubjectsResponse, error) {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return c.Permissions.CountSubjects(ctx, r)
}

// ListStores returns the stores that the key may know of, by name.
func (c *Client) ListStores(ctx context.Context) iter.Seq2[*pembav1.Store, error] {
	return pages(func(cursor string) ([]*pembav1.Store, string, error) {
		answer, err := c.Stores.ListStores(ctx, &pembav1.ListStoresRequest{Limit: pageMax, Cursor: cursor})
		return answer.GetStores(), answer.GetCursor(), err
	})
}

// ListSchemaVersions returns the schemas that the client's store has and had, the
// newest first.
func (c *Client) ListSchemaVersions(ctx context.Context) iter.Seq2[*pembav1.SchemaVersion, error] {
	return pages(func(cursor string) ([]*pembav1.SchemaVersion, string, error) {
		answer, err := c.Schemas.ListSchemaVersions(ctx, &pembav1.ListSchemaVersionsRequest{Store: c.store, Cursor: cursor})
		return answer.GetVersions(), answer.GetCursor(), err
	})
}

// pageMax is the largest page that the server gives.
const pageMax = 1000

// pages yields the items of one page after the other.
func pages[Item any](next func(cursor string) ([]*Item, string, error)) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		cursor := ""
		for {
			items, behind, err := next(cursor)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if cursor = behind; cursor == "" {
				return
			}
		}
	}
}

// results calls and yields what comes, and at last the error if there is one.
func results[Request, Response any](
	ctx context.Context,
	call func(context.Context, *Request, ...grpc.CallOption) (grpc.ServerStreamingClient[Response], error),
	r *Request,
) iter.Seq2[*Response, error] {
	return func(yield func(*Response, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := call(ctx, r)
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			response, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if !yield(response, err) || err != nil {
				return
			}
		}
	}
}

// Reason returns the reason of an error that a server gave, as "UNKNOWN_TYPE",
// with its metadata; empty for any other error.
func Reason(err error) (reason string, metadata map[string]string) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == api.ErrorDomain {
			return info.GetReason(), info.GetMetadata()
		}
	}
	return "", nil
}
