package api

import (
	"bytes"
	"context"
	_ "embed" // for the OpenAPI document
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/schema"
)

// httpPrefix begins the path of every call over HTTP.
const httpPrefix = "/pemba/v1/"

// openAPIPath is where the OpenAPI document is served.
const openAPIPath = httpPrefix + "openapi.json"

// httpSendTimeout is how long a unary call over HTTP may take to send its
// message, and any call to take a part of its answer.
const httpSendTimeout = 10 * time.Second

// httpPath returns the path of a method: /pemba/v1/check-bulk for CheckBulk.
// gateway.yaml says the same to the generators, which a test holds.
func httpPath(method string) string {
	path := []byte(httpPrefix)
	for i, c := range []byte(method) {
		if 'A' <= c && c <= 'Z' {
			if i > 0 {
				path = append(path, '-')
			}
			c += 'a' - 'A'
		}
		path = append(path, c)
	}
	return string(path)
}

// services are those of pemba.v1.
var services = []*grpc.ServiceDesc{
	&pembav1.StoreService_ServiceDesc, &pembav1.SchemaService_ServiceDesc, &pembav1.TupleService_ServiceDesc,
	&pembav1.PermissionService_ServiceDesc, &pembav1.WatchService_ServiceDesc, &pembav1.ClusterService_ServiceDesc,
}

// A gateway serves pemba.v1 and the dialects as JSON over HTTP. It makes a gRPC
// call of each request, over a connection inside the process, so that keys,
// limits, metrics, errors and panics have one path. See docs/http.md for the rules.
type gateway struct {
	server *Server
	// mux is that of pemba.v1.
	mux *runtime.ServeMux
	// streaming says for each path of pemba.v1 whether its request is a stream.
	streaming map[string]bool
	// forms are those of the dialects, and documents what they serve to anybody, by
	// path.
	forms     []*dialectForm
	documents map[string]string

	grpc     *grpc.Server
	listener *bufconn.Listener
	conn     *grpc.ClientConn
}

// pipeBytes is how much the connection inside the process holds in each
// direction before its writer waits.
const pipeBytes = 256 << 10

// newGateway makes a gateway to a second gRPC server with the same services.
func newGateway(s *Server) (*gateway, error) {
	g := &gateway{server: s, streaming: make(map[string]bool), documents: make(map[string]string), listener: bufconn.Listen(pipeBytes)}
	for _, service := range services {
		for _, m := range service.Methods {
			g.streaming[httpPath(m.MethodName)] = false
		}
		for _, m := range service.Streams {
			g.streaming[httpPath(m.StreamName)] = m.ClientStreams
		}
	}
	// All callers share the connection, so its number of calls has no limit of its
	// own: the addresses' connections and their streams bound it.
	g.grpc = s.newGRPC(grpc.MaxConcurrentStreams(1 << 30))
	var err error
	g.conn, err = grpc.NewClient("passthrough:///gateway",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithStreamInterceptor(followCall),
		// What a client over HTTP does not take waits here too. Left alone, gRPC
		// lets it grow to 16 MiB for each call.
		grpc.WithStaticStreamWindowSize(64<<10),
		grpc.WithStaticConnWindowSize(1<<20),
	)
	if err != nil {
		return nil, fmt.Errorf("api: connect the gateway: %w", err)
	}
	g.mux = newMux(jsonForm{marshal: marshalForm, unmarshal: unmarshalForm, streamType: ndjson}, withReason,
		runtime.WithErrorHandler(g.writeError),
		runtime.WithIncomingHeaderMatcher(traceHeader),
		runtime.WithOutgoingHeaderMatcher(func(key string) (string, bool) { return ZookieHeader, key == ZookieHeader }),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
	)
	ctx := context.Background()
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		pembav1.RegisterStoreServiceHandler, pembav1.RegisterSchemaServiceHandler, pembav1.RegisterTupleServiceHandler,
		pembav1.RegisterPermissionServiceHandler, pembav1.RegisterWatchServiceHandler, pembav1.RegisterClusterServiceHandler,
	} {
		if err := register(ctx, g.mux, g.conn); err != nil {
			return nil, errors.Join(fmt.Errorf("api: register the gateway: %w", err), g.conn.Close())
		}
	}
	for _, d := range s.spoken {
		if err := g.addDialect(ctx, d); err != nil {
			return nil, errors.Join(fmt.Errorf("api: register the gateway: %w", err), g.conn.Close())
		}
	}
	return g, nil
}

// newMux makes a mux of calls in a JSON form. StatusOf gives the status of the
// error of a stream.
func newMux(form jsonForm, statusOf func(error) *status.Status, options ...runtime.ServeMuxOption) *runtime.ServeMux {
	return runtime.NewServeMux(append(options,
		runtime.WithMarshalerOption(runtime.MIMEWildcard, form),
		runtime.WithStreamErrorHandler(func(ctx context.Context, err error) *status.Status {
			st := statusOf(err)
			if w, ok := ctx.Value(writerKey{}).(*patientWriter); ok && isTooLarge(st) {
				w.status = http.StatusRequestEntityTooLarge
			}
			return st
		}),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
	)...)
}

// traceHeader passes on the headers of traces. The runtime passes the key on by
// itself; a request says nothing else in a header.
func traceHeader(name string) (string, bool) {
	return strings.ToLower(name), name == "Traceparent" || name == "Tracestate"
}

// serve answers what comes over the connection inside the process, until close.
func (g *gateway) serve() error { return g.grpc.Serve(g.listener) }

// close ends the gateway, after the HTTP server: no call is open any more, or
// those that are get canceled.
func (g *gateway) close() error {
	err := g.conn.Close()
	g.grpc.Stop()
	return errors.Join(err, g.listener.Close())
}

// openAPI is the document that describes the paths, generated beside the
// protocol.
//
//go:embed pemba/v1/pemba.swagger.json
var openAPI []byte

// ServeHTTP answers one request below httpPrefix.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == openAPIPath {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			g.server.refuseMethod(w, r, "GET")
			return
		}
		writeDocument(w, openAPI)
		return
	}
	streaming, known := g.streaming[r.URL.Path]
	switch {
	case !known:
		g.server.refusePath(w, r)
		return
	case r.Method != http.MethodPost:
		g.server.refuseMethod(w, r, "POST")
		return
	}
	// Strangers are turned away before their request is read.
	if _, err := g.server.gate.admit(r.Header.Values("Authorization")); err != nil {
		g.server.writeStatus(w, err, 0)
		return
	}
	if err := validateForm(r); err != nil {
		g.server.writeStatus(w, err, http.StatusUnsupportedMediaType)
		return
	}
	if r.URL.RawQuery != "" {
		g.server.writeStatus(w, malformed("", "the path has a query; the request stands in the body"), 0)
		return
	}
	g.call(w, r, g.mux, streaming, func(err error, httpStatus int) { g.server.writeStatus(w, err, httpStatus) })
}

// writeDocument answers with a description of paths.
func writeDocument[T string | []byte](w http.ResponseWriter, document T) {
	w.Header().Set("Content-Type", "application/json")
	// The reader has gone when this fails; there is no one to tell.
	_, _ = w.Write([]byte(document))
}

// call answers a request whose caller was let in, by the mux of its API. Streaming
// says that the request is a stream, and refuse writes an error.
func (g *gateway) call(w http.ResponseWriter, r *http.Request, mux http.Handler, streaming bool, refuse func(err error, httpStatus int)) {
	if noTime(r.Header.Get("Grpc-Timeout")) {
		refuse(context.DeadlineExceeded, 0)
		return
	}
	// A client that takes or sends nothing does not keep a call open.
	control := http.NewResponseController(w)
	patient := &patientWriter{ResponseWriter: w, control: control, patience: g.server.limits.StreamStall}
	patient.unwatch()
	defer patient.wait() // The rest is flushed when this function has returned.
	w = patient
	if streaming {
		// An error may be the answer before the request has ended: followCall then
		// ends the reading. The answer waits for the rest, which may never come, unless
		// it says that its connection ends, as answeringWriter does.
		body := &messageReader{body: r.Body, control: control, patience: g.server.limits.StreamStall, max: g.server.limits.RequestBytes}
		r.Body = body
		defer body.leave() // Also when the runtime panics: followCall may outlive it.
		mux.ServeHTTP(&answeringWriter{ResponseWriter: w, body: body}, r.WithContext(context.WithValue(r.Context(), bodyKey{}, body)))
		return
	}
	_ = control.SetReadDeadline(time.Now().Add(httpSendTimeout)) // Without one, the server's own goes on.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(g.server.limits.RequestBytes)))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			refuse(requestTooLarge(g.server.limits.RequestBytes), http.StatusRequestEntityTooLarge)
			return
		}
		refuse(malformed("", "the body broke off: %v", err), 0)
		return
	}
	// The deadline was for sending; the answer may take longer, and a connection
	// whose deadline has passed would end it.
	_ = control.SetReadDeadline(time.Time{})
	r.Body = wholeBody{bytes.NewReader(body)}
	mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), writerKey{}, patient)))
}

// validateForm refuses a body that is not called JSON in UTF-8, or is compressed. A page of another site can
// send any other form to a server on this machine without being asked.
func validateForm(r *http.Request) error {
	unsupported := &requestError{code: codes.InvalidArgument, reason: "UNSUPPORTED_MEDIA_TYPE"}
	form, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || form != "application/json" && form != ndjson {
		unsupported.message = fmt.Sprintf("the header Content-Type is %q; application/json is allowed", r.Header.Get("Content-Type"))
		return unsupported
	}
	if charset, named := parameters["charset"]; named && !strings.EqualFold(charset, "utf-8") {
		unsupported.message = fmt.Sprintf("the charset of the header Content-Type is %q; utf-8 is allowed", charset)
		return unsupported
	}
	for _, encoding := range r.Header.Values("Content-Encoding") {
		if encoding != "" && !strings.EqualFold(encoding, "identity") {
			unsupported.message = fmt.Sprintf("the header Content-Encoding is %q; the body is sent as it is, without one", encoding)
			return unsupported
		}
	}
	return nil
}

// noTime reports whether a timeout is zero, which the runtime would take for
// none. What is no timeout at all is refused by the runtime.
func noTime(timeout string) bool {
	n := len(timeout) - 1
	return n > 0 && strings.Trim(timeout[:n], "0") == "" && strings.Contains("HMSmun", timeout[n:])
}

func requestTooLarge(allowed int) error {
	return &requestError{
		code: codes.ResourceExhausted, reason: "TOO_LARGE",
		message:  fmt.Sprintf("a message of the request has more than %d bytes, which are allowed; send several, or raise --limit-request-bytes of the server", allowed),
		metadata: map[string]string{"limit": strconv.Itoa(allowed)},
	}
}

// refuseMethod answers a request by another HTTP method than the path has.
func (s *Server) refuseMethod(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	s.writeStatus(w, &requestError{
		code: codes.Unimplemented, reason: "METHOD_NOT_ALLOWED",
		message: fmt.Sprintf("%s is no method of %s; %s is allowed", r.Method, r.URL.Path, allowed),
	}, http.StatusMethodNotAllowed)
}

// refusePath answers a request for a path that is none.
func (s *Server) refusePath(w http.ResponseWriter, r *http.Request) {
	e := &requestError{
		code: codes.NotFound, reason: "UNKNOWN_PATH",
		message: fmt.Sprintf("there is no path %q; %s lists those of the protocol", r.URL.Path, openAPIPath),
	}
	var names []string
	for path := range s.gateway.streaming {
		names = append(names, strings.TrimPrefix(path, httpPrefix))
	}
	name, below := strings.CutPrefix(r.URL.Path, httpPrefix)
	near := schema.Nearest(name, names)
	if !below {
		// The name of a call may be right, and what stands before it be missing.
		if near = name[strings.LastIndexByte(name, '/')+1:]; !slices.Contains(names, near) {
			near = ""
		}
	}
	if near != "" {
		e.message += fmt.Sprintf("; did you mean %q?", httpPrefix+near)
		e.metadata = map[string]string{"suggestion": httpPrefix + near}
	}
	s.writeStatus(w, e, 0)
}

// writeError answers with the error of a call that has not answered yet.
func (g *gateway) writeError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	// The runtime turns what reading a message gave into text.
	if body, ok := r.Body.(*messageReader); ok && body.tooLarge {
		g.server.writeStatus(w, requestTooLarge(body.max), http.StatusRequestEntityTooLarge)
		return
	}
	g.server.writeStatus(w, err, 0)
}

// writeStatus answers with an error, under an HTTP status that follows from its
// code unless another is given.
func (s *Server) writeStatus(w http.ResponseWriter, err error, httpStatus int) {
	st := withReason(err)
	switch {
	case httpStatus != 0:
	case isTooLarge(st):
		httpStatus = http.StatusRequestEntityTooLarge
	default:
		httpStatus = runtime.HTTPStatusFromCode(st.Code())
	}
	h := w.Header()
	h.Del("Transfer-Encoding")
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if st.Code() == codes.Unauthenticated {
		h.Set("WWW-Authenticate", "Bearer")
	}
	setRetryAfter(h, st)
	body, err := marshalForm.Marshal(st.Proto())
	if err != nil {
		s.logger.Error("an error cannot be written as JSON", "error", err)
		body = []byte(`{"code":13,"message":"the error cannot be written as JSON"}`)
	}
	w.WriteHeader(httpStatus)
	// The caller has gone when this fails; there is no one to tell.
	_, _ = w.Write(slices.Concat([]byte(`{"error":`), body, []byte("}\n")))
}

// setRetryAfter says in a header when to try again, if the status says so.
func setRetryAfter(h http.Header, st *status.Status) {
	for _, detail := range st.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			// The header knows whole seconds only.
			h.Set("Retry-After", strconv.FormatInt(int64((retry.GetRetryDelay().AsDuration()+time.Second-1)/time.Second), 10))
		}
	}
}

// withReason returns the status of an error, with a reason also where the error
// comes from gRPC or the JSON decoder and has none.
func withReason(err error) *status.Status {
	st, _ := toStatus(err)
	for _, detail := range st.Details() {
		if _, ok := detail.(*errdetails.ErrorInfo); ok {
			return st
		}
	}
	reason, message := "GRPC", st.Message()
	switch st.Code() {
	case codes.InvalidArgument:
		reason = "MALFORMED"
	case codes.DeadlineExceeded:
		// What gRPC says of it is of contexts and frames.
		reason, message = "DEADLINE_EXCEEDED", "the deadline of the call has passed"
	case codes.Canceled:
		reason = "CANCELED"
	case codes.ResourceExhausted:
		reason = "TOO_LARGE"
	case codes.Unavailable:
		reason = "SHUTTING_DOWN"
	}
	return newStatus(st.Code(), reason, "", message, nil)
}

// ndjson is one JSON object a line.
const ndjson = "application/x-ndjson"

// marshalForm writes what is set and what has a value of its own when it is not:
// zero numbers, false, empty lists; but not messages that are absent.
var (
	marshalForm   = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}
	unmarshalForm = protojson.UnmarshalOptions{DiscardUnknown: false}
)

// A jsonForm is how messages are read and written: by the rules of its API, and a
// stream as one object a line.
type jsonForm struct {
	marshal   protojson.MarshalOptions
	unmarshal protojson.UnmarshalOptions
	// streamType is the media type of a stream.
	streamType string
}

// ContentType implements runtime.Marshaler.
func (jsonForm) ContentType(any) string { return "application/json" }

// StreamContentType implements runtime.StreamContentType.
func (f jsonForm) StreamContentType(any) string { return f.streamType }

// Delimiter implements runtime.Delimited.
func (jsonForm) Delimiter() []byte { return []byte("\n") }

// Marshal implements runtime.Marshaler. A message of a stream comes wrapped in a
// map with one key, "result" or "error".
func (f jsonForm) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		b, err := f.marshal.Marshal(v)
		return append(b, '\n'), err
	case map[string]any:
		return marshalWrapped(f.marshal, v)
	case map[string]proto.Message:
		return marshalWrapped(f.marshal, v)
	}
	return nil, fmt.Errorf("api: %T is no message", v)
}

func marshalWrapped[V any](marshal protojson.MarshalOptions, wrapped map[string]V) ([]byte, error) {
	for name, v := range wrapped {
		m, ok := any(v).(proto.Message)
		if !ok {
			return nil, fmt.Errorf("api: %T is no message", v)
		}
		b, err := marshal.MarshalAppend([]byte(`{"`+name+`":`), m)
		return append(b, '}'), err
	}
	return nil, errors.New("api: an empty answer")
}

// Unmarshal implements runtime.Marshaler.
func (f jsonForm) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("api: %T is no message", v)
	}
	if err := f.unmarshal.Unmarshal(data, m); err != nil {
		// The decoder puts blanks of several kinds into its errors on purpose.
		text := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "proto:")), " ")
		return fmt.Errorf("the JSON is not the message that is expected: %s", text)
	}
	return nil
}

// NewEncoder implements runtime.Marshaler.
func (f jsonForm) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		b, err := f.Marshal(v)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	})
}

// NewDecoder implements runtime.Marshaler. It decodes one message of a body that
// is there as a whole, and else one after another.
func (f jsonForm) NewDecoder(r io.Reader) runtime.Decoder {
	if whole, ok := r.(wholeBody); ok {
		return runtime.DecoderFunc(func(v any) error {
			data, err := io.ReadAll(whole)
			if err != nil {
				return err
			}
			if len(bytes.TrimSpace(data)) == 0 {
				return nil // The empty message.
			}
			return f.Unmarshal(data, v)
		})
	}
	messages := json.NewDecoder(r)
	return runtime.DecoderFunc(func(v any) error {
		if body, ok := r.(*messageReader); ok {
			body.begin()
		}
		var raw json.RawMessage
		if err := messages.Decode(&raw); err != nil {
			if body, ok := r.(*messageReader); ok && body.isAnswered() {
				return io.EOF // The runtime now looks at the answer.
			}
			return err
		}
		return f.Unmarshal(raw, v)
	})
}

// A wholeBody is a body that has been read.
type wholeBody struct{ *bytes.Reader }

// Close does nothing: the body it was read from is closed by the server.
func (wholeBody) Close() error { return nil }

// bodyKey is the key of the messageReader of a call in its context.
type bodyKey struct{}

// followCall makes the calls of the gateway. Where the request is a stream, the
// reading of its body ends with the call: an error of the first message then
// reaches a client that sends no second one.
func followCall(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := streamer(ctx, desc, conn, method, options...)
	body, ok := ctx.Value(bodyKey{}).(*messageReader)
	if err != nil || !ok {
		return stream, err
	}
	// The runtime cancels ctx when it returns, so that this ends.
	go func() {
		// A call has no header when it ended before it had one, as all do that fail.
		// One that has may go on, and to end its body would be to commit it.
		if header, _ := stream.Header(); header == nil {
			body.answer()
		}
	}()
	return stream, nil
}

// A messageReader reads the body of a request that is a stream. It bounds each
// message, but for what was read ahead, and how long it waits for a part. All its
// methods but answer are for the goroutine of the request.
type messageReader struct {
	body     io.ReadCloser
	control  *http.ResponseController
	patience time.Duration
	// max bounds a message; left is what the one being read may still have.
	max, left int
	tooLarge  bool

	// mu guards those below and the deadline: one that is set while reading must
	// not be moved by the reader.
	mu sync.Mutex
	// whole says that the body was read to its end.
	whole bool
	// answered says that the call has ended, so that nobody waits for the rest.
	answered bool
	// gone says that the request has been answered: its connection may be that of
	// the next one, whose deadline is not to be touched.
	gone bool
}

// begin says that a message begins.
func (m *messageReader) begin() { m.left = m.max }

// answer says that the call has ended. A Read that is waiting fails, as do all
// later ones.
func (m *messageReader) answer() {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Behind the end of a body the server waits for what comes next on the
	// connection, and takes a deadline there for the end of all its calls.
	if m.gone || m.whole {
		return
	}
	m.answered = true
	_ = m.control.SetReadDeadline(time.Now()) // Without one, the client's silence ends it.
}

// isAnswered reports whether the call has ended.
func (m *messageReader) isAnswered() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answered
}

// isClean reports whether the connection may be used again: the body was read to
// its end, and by no deadline.
func (m *messageReader) isClean() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.whole && !m.answered
}

// leave says that the request has been answered.
func (m *messageReader) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
	if !m.whole {
		// The server reads what is left, to use the connection again; what is not
		// here by now is not worth waiting for.
		_ = m.control.SetReadDeadline(time.Now())
	}
}

// wait gives the client time until a moment for the next part, or forever for the
// zero one, unless the call has ended.
func (m *messageReader) wait(until time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answered {
		return errAnswered
	}
	_ = m.control.SetReadDeadline(until) // Without one, it waits longer.
	return nil
}

var errAnswered = errors.New("the call has been answered")

// Read reads a part of the message.
func (m *messageReader) Read(p []byte) (int, error) {
	if m.left <= 0 {
		m.tooLarge = true
		return 0, fmt.Errorf("a message has more than %d bytes", m.max)
	}
	if err := m.wait(time.Now().Add(m.patience)); err != nil {
		return 0, err
	}
	n, err := m.body.Read(p[:min(len(p), m.left)])
	m.left -= n
	if errors.Is(err, io.EOF) {
		m.mu.Lock()
		m.whole = true
		m.mu.Unlock()
		// The answer may take longer. Any other error leaves the deadline, which
		// ends a connection whose client has gone silent.
		_ = m.wait(time.Time{})
	}
	return n, err
}

// Close closes the body.
func (m *messageReader) Close() error { return m.body.Close() }

// An answeringWriter says that the connection ends with an answer that comes
// before the request has ended.
type answeringWriter struct {
	http.ResponseWriter
	body *messageReader
}

// WriteHeader begins the answer.
func (w *answeringWriter) WriteHeader(status int) {
	if !w.body.isClean() {
		w.Header().Set("Connection", "close")
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController find what the writer beneath can do.
func (w *answeringWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A patientWriter gives each part of an answer its own time, so that an answer
// may take long, a watch may be silent, and a client that takes nothing is let go.
type patientWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	// status is that of an answer that has not begun, for an error to which the
	// runtime would give another; zero leaves it.
	status int
}

// writerKey is the key of the patientWriter of a call in its context.
type writerKey struct{}

// WriteHeader begins the answer.
func (w *patientWriter) WriteHeader(status int) {
	if w.status != 0 {
		status = w.status
	}
	w.ResponseWriter.WriteHeader(status)
}

// wait bounds what is written next, and unwatch lifts the bound: HTTP/2 ends a
// stream whose deadline passes, whether it writes or not. Where there are no
// deadlines, writing waits longer.
func (w *patientWriter) wait()    { _ = w.control.SetWriteDeadline(time.Now().Add(w.patience)) }
func (w *patientWriter) unwatch() { _ = w.control.SetWriteDeadline(time.Time{}) }

// Write writes a part of the answer.
func (w *patientWriter) Write(p []byte) (int, error) {
	w.wait()
	defer w.unwatch()
	return w.ResponseWriter.Write(p)
}

// FlushError sends what was written.
func (w *patientWriter) FlushError() error {
	w.wait()
	defer w.unwatch()
	return w.control.Flush()
}

// Unwrap lets http.ResponseController find what the writer beneath can do.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
