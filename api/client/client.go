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
// Errors are those of gRPC; Reason tells them apart.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// Config says which server to speak to, and as whom.
type Config struct {
	// Addr is the server's gRPC address, as "127.0.0.1:50051".
	Addr string
	// Key is the key to present; empty for none. It is sent as it is: the
	// connection is not encrypted, so it should not leave the machine or a
	// network that is trusted.
	Key string
	// Store is the store that the methods of Client ask; empty for the default.
	Store string
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	if c.Addr == "" {
		return errors.New("client: no address is given; it has the form host:port")
	}
	return nil
}

// A Client is a connection to a server. It is safe for concurrent use.
type Client struct {
	// Schemas, Tuples and Permissions are the services themselves. Their
	// requests name the store.
	Schemas     pembav1.SchemaServiceClient
	Tuples      pembav1.TupleServiceClient
	Permissions pembav1.PermissionServiceClient

	conn  *grpc.ClientConn
	store string
}

// responseBytesMax is how large an answer may be, that of a bulk check or a
// deep explanation.
const responseBytesMax = 64 << 20

// Dial connects to the server and returns when it can be reached, or with why
// it cannot. ctx bounds only that.
func Dial(ctx context.Context, config Config) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(responseBytesMax)),
	}
	if config.Key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(config.Key)))
	}
	conn, err := grpc.NewClient("passthrough:///"+config.Addr, options...)
	if err != nil {
		return nil, fmt.Errorf("client: %s: %w", config.Addr, err)
	}
	if err := reach(ctx, conn); err != nil {
		return nil, errors.Join(fmt.Errorf("client: cannot reach a server at %s: %w", config.Addr, err), conn.Close())
	}
	return &Client{
		Schemas:     pembav1.NewSchemaServiceClient(conn),
		Tuples:      pembav1.NewTupleServiceClient(conn),
		Permissions: pembav1.NewPermissionServiceClient(conn),
		conn:        conn, store: config.Store,
	}, nil
}

// reach waits until conn is connected. At the first failure it asks for the
// reason, which only a call gives.
func reach(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.TransientFailure {
			_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			if err == nil {
				return nil // It came after all.
			}
			return errors.New(dialProblem(status.Convert(err).Message()))
		}
		if !conn.WaitForStateChange(ctx, state) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// dialProblem takes the wrapping off what gRPC says of a failed connection.
func dialProblem(message string) string {
	if _, problem, ok := strings.Cut(message, "Error while dialing: "); ok {
		return strings.TrimSuffix(problem, `"`)
	}
	return message
}

// Close ends the connection and all calls on it.
func (c *Client) Close() error { return c.conn.Close() }

// bearer presents a key with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return false }

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

// A Question is what Check asks.
type Question struct {
	Object graph.Object
	// Permission is a relation or permission of the object's type.
	Permission string
	Subject    graph.Subject
	// Context gives values for caveat parameters, as JSON values: nil, bool,
	// float64, string, []any and map[string]any. It may be nil.
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
		s, err := structpb.NewStruct(q.Context)
		if err != nil {
			return nil, fmt.Errorf("client: the context: %w", err)
		}
		r.Context = s
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
	if r.Store == "" {
		r.Store = c.store
	}
	return results(ctx, c.Tuples.ReadTuples, r)
}

// LookupResources returns the resources that r asks for; see ReadTuples.
func (c *Client) LookupResources(ctx context.Context, r *pembav1.LookupResourcesRequest) iter.Seq2[*pembav1.LookupResourcesResponse, error] {
	r = proto.CloneOf(r)
	if r.Store == "" {
		r.Store = c.store
	}
	return results(ctx, c.Permissions.LookupResources, r)
}

// LookupSubjects returns the subjects that r asks for; see ReadTuples.
func (c *Client) LookupSubjects(ctx context.Context, r *pembav1.LookupSubjectsRequest) iter.Seq2[*pembav1.LookupSubjectsResponse, error] {
	r = proto.CloneOf(r)
	if r.Store == "" {
		r.Store = c.store
	}
	return results(ctx, c.Permissions.LookupSubjects, r)
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
