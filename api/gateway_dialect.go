package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// An HTTPForm is a dialect's JSON over HTTP, on the address and through the limits
// of that of pemba.v1. Its paths, and the messages of its errors, are what the
// runtime of grpc-gateway makes of the protocol.
type HTTPForm struct {
	// Prefix begins the paths of the calls, as "/v1/". It ends in a slash, and no
	// other dialect of the server has the same.
	Prefix string
	// Streams are the paths of the calls whose request is a stream of messages.
	Streams []string
	// Register adds the calls to a mux, which makes them over conn.
	Register func(ctx context.Context, mux *runtime.ServeMux, conn *grpc.ClientConn) error
	// Marshal and Unmarshal are the rules of the JSON.
	Marshal   protojson.MarshalOptions
	Unmarshal protojson.UnmarshalOptions
	// RequestHeader says whether a header of a request, in its canonical form, is
	// metadata of the call, and under which key. The authorization, StoreHeader and
	// the headers of traces always are. It may be nil.
	RequestHeader func(name string) (key string, passes bool)
	// ResponseHeader says the same of a key of the answer's metadata, and
	// ResponseTrailer of its trailer, which only those get who ask for trailers. They
	// may be nil.
	ResponseHeader, ResponseTrailer func(key string) (name string, passes bool)
	// Documents describe the calls in JSON, by path. Anybody may read them.
	Documents map[string]string
}

// A dialectForm serves the HTTPForm of a dialect.
type dialectForm struct {
	HTTPForm
	gateway *gateway
	dialect Dialect
	mux     *runtime.ServeMux
}

// addDialect adds the form of a dialect, if it has one.
func (g *gateway) addDialect(ctx context.Context, d Dialect) error {
	form := d.HTTP()
	if form == nil {
		return nil
	}
	f := &dialectForm{HTTPForm: *form, gateway: g, dialect: d}
	none := func(string) (string, bool) { return "", false }
	for _, matcher := range []*func(string) (string, bool){&f.RequestHeader, &f.ResponseHeader, &f.ResponseTrailer} {
		if *matcher == nil {
			*matcher = none
		}
	}
	f.mux = newMux(jsonForm{marshal: f.Marshal, unmarshal: f.Unmarshal, streamType: "application/json"}, status.Convert,
		runtime.WithErrorHandler(f.writeError),
		runtime.WithIncomingHeaderMatcher(func(name string) (string, bool) {
			if strings.EqualFold(name, StoreHeader) {
				return StoreHeader, true
			}
			if key, passes := traceHeader(name); passes {
				return key, true
			}
			return f.RequestHeader(name)
		}),
		runtime.WithOutgoingHeaderMatcher(f.ResponseHeader),
		runtime.WithOutgoingTrailerMatcher(f.ResponseTrailer),
	)
	if err := f.Register(ctx, f.mux, g.conn); err != nil {
		return err
	}
	for _, other := range g.forms {
		if other.Prefix == f.Prefix {
			return fmt.Errorf("two dialects have the paths below %s", f.Prefix)
		}
	}
	g.forms = append(g.forms, f)
	for path, document := range f.Documents {
		g.documents[path] = document
	}
	return nil
}

// serveDialect answers a request by a dialect, and reports whether one has its
// path.
func (g *gateway) serveDialect(w http.ResponseWriter, r *http.Request) bool {
	if document, ok := g.documents[r.URL.Path]; ok {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			g.server.refuseMethod(w, r, "GET")
			return true
		}
		writeDocument(w, document)
		return true
	}
	for _, f := range g.forms {
		if strings.HasPrefix(r.URL.Path, f.Prefix) {
			f.ServeHTTP(w, r)
			return true
		}
	}
	return false
}

// ServeHTTP answers one request below the prefix.
func (f *dialectForm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(err error, httpStatus int) { f.refuse(w, r, err, httpStatus) }
	// Strangers are turned away before their request is read.
	who, err := f.gateway.server.gate.admit(r.Header.Values("Authorization"))
	if err != nil {
		refuse(err, 0)
		return
	}
	// Without a key, the form is what a page of another site cannot send unasked. A
	// caller with one may call its JSON what it likes, as clients of the API do.
	if who.keyless() && r.Method == http.MethodPost {
		if err := validateForm(r); err != nil {
			refuse(err, http.StatusUnsupportedMediaType)
			return
		}
	}
	// What cannot go on as metadata would be dropped, and the call be about the
	// default store.
	for _, name := range []string{StoreHeader, runtime.MetadataHeaderPrefix + StoreHeader} {
		for _, value := range r.Header.Values(name) {
			if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }) {
				refuse(malformed(StoreHeader, "it is %q; printable characters of ASCII are allowed", value), 0)
				return
			}
		}
	}
	f.gateway.call(w, r, f.mux, slices.Contains(f.Streams, r.URL.Path), refuse)
}

// refuse answers with an error that is not yet in the words of the dialect.
func (f *dialectForm) refuse(w http.ResponseWriter, r *http.Request, err error, httpStatus int) {
	native, _ := toStatus(err)
	err = f.dialect.Status(err, native).Err()
	if httpStatus != 0 {
		err = &runtime.HTTPStatusError{HTTPStatus: httpStatus, Err: err}
	}
	_, outbound := runtime.MarshalerForRequest(f.mux, r)
	f.writeError(r.Context(), f.mux, outbound, w, r, err)
}

// writeError answers with the error of a call that has not answered yet.
func (f *dialectForm) writeError(ctx context.Context, mux *runtime.ServeMux, outbound runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	// The runtime turns what reading a message gave into text.
	if body, ok := r.Body.(*messageReader); ok && body.tooLarge {
		native, _ := toStatus(requestTooLarge(body.max))
		err = native.Err()
	}
	st := status.Convert(err)
	if isTooLarge(st) {
		err = &runtime.HTTPStatusError{HTTPStatus: http.StatusRequestEntityTooLarge, Err: err}
	}
	h := w.Header()
	setRetryAfter(h, st)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	runtime.DefaultHTTPErrorHandler(ctx, mux, outbound, w, r, err)
}
