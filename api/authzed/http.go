package authzed

import (
	"context"
	"strings"

	"github.com/authzed/authzed-go/proto"
	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/pembadb/pemba/api"
)

// HTTP implements api.Dialect: every call as POST below /v1/, by the gateway that
// is generated with the protocol. Names are written in lower camel case, and
// values that are not set as well; unknown names are ignored.
func (Dialect) HTTP() *api.HTTPForm {
	return &api.HTTPForm{
		Prefix:    "/v1/",
		Streams:   []string{"/v1/relationships/importbulk", "/v1/experimental/relationships/bulkimport"},
		Register:  registerHTTP,
		Marshal:   protojson.MarshalOptions{EmitUnpopulated: true},
		Unmarshal: protojson.UnmarshalOptions{DiscardUnknown: true},
		RequestHeader: func(name string) (string, bool) {
			key := strings.ToLower(strings.TrimPrefix(name, runtime.MetadataHeaderPrefix))
			return key, key == requestIDKey || key == api.StoreHeader || strings.HasPrefix(key, metadataPrefix)
		},
		ResponseHeader: func(key string) (string, bool) {
			return runtime.MetadataHeaderPrefix + key, strings.HasPrefix(key, metadataPrefix)
		},
		ResponseTrailer: func(key string) (string, bool) {
			return runtime.MetadataTrailerPrefix + key, key == requestIDKey || strings.HasPrefix(key, metadataPrefix)
		},
		Documents: map[string]string{"/openapi.json": proto.OpenAPISchema, "/v1/openapi.json": proto.OpenAPISchema},
	}
}

// metadataPrefix begins the keys of metadata that are the API's own.
const metadataPrefix = "io.spicedb."

func registerHTTP(ctx context.Context, mux *runtime.ServeMux, conn *grpc.ClientConn) error {
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		v1.RegisterPermissionsServiceHandler, v1.RegisterSchemaServiceHandler,
		v1.RegisterWatchServiceHandler, v1.RegisterExperimentalServiceHandler,
	} {
		if err := register(ctx, mux, conn); err != nil {
			return err
		}
	}
	return nil
}
