package authzed

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

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
	document, err := openAPI()
	return &api.HTTPForm{
		Prefix:  "/v1/",
		Streams: []string{"/v1/relationships/importbulk", "/v1/experimental/relationships/bulkimport"},
		Register: func(ctx context.Context, mux *runtime.ServeMux, conn *grpc.ClientConn) error {
			if err != nil {
				return err
			}
			return registerHTTP(ctx, mux, conn)
		},
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
		Documents: map[string]string{"/openapi.json": document, "/v1/openapi.json": document},
	}
}

// openAPI is the description that comes with the protocol, without the services that
// are not served and the messages that only they have.
var openAPI = sync.OnceValues(func() (string, error) {
	served := make(map[string]bool) // The names of services, and the ids of operations.
	for _, service := range (Dialect{}).Services() {
		name := service.ServiceName[strings.LastIndex(service.ServiceName, ".")+1:]
		served[name] = true
		for _, m := range service.Methods {
			served[name+"_"+m.MethodName] = true
		}
		for _, m := range service.Streams {
			served[name+"_"+m.StreamName] = true
		}
	}
	var document map[string]any
	if err := json.Unmarshal([]byte(proto.OpenAPISchema), &document); err != nil {
		return "", fmt.Errorf("authzed: read the description of the API: %w", err)
	}
	document["tags"] = slices.DeleteFunc(listOf(document["tags"]), func(tag any) bool {
		name, _ := tableOf(tag)["name"].(string)
		return !served[name]
	})
	paths := tableOf(document["paths"])
	for path, methods := range paths {
		maps.DeleteFunc(tableOf(methods), func(_ string, operation any) bool {
			id, _ := tableOf(operation)["operationId"].(string)
			return !served[id]
		})
		if len(tableOf(methods)) == 0 {
			delete(paths, path)
		}
	}
	definitions, referred := tableOf(document["definitions"]), make(map[string]bool)
	var follow func(part any)
	follow = func(part any) {
		for _, x := range listOf(part) {
			follow(x)
		}
		for key, x := range tableOf(part) {
			text, isText := x.(string)
			name, isReference := strings.CutPrefix(text, "#/definitions/")
			if key == "$ref" && isText && isReference && !referred[name] {
				referred[name] = true
				follow(definitions[name])
			}
			follow(x)
		}
	}
	follow(paths)
	maps.DeleteFunc(definitions, func(name string, _ any) bool { return !referred[name] })
	text, err := json.Marshal(document)
	return string(text), err
})

// tableOf and listOf return what a part of a JSON document has; nothing for one of
// another kind.
func tableOf(part any) map[string]any {
	m, _ := part.(map[string]any)
	return m
}

func listOf(part any) []any {
	l, _ := part.([]any)
	return l
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
