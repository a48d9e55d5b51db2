package api

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A message that cannot be decoded is the caller's mistake, and is refused with a
// reason as any other. gRPC alone would call it INTERNAL, which clients take for
// a fault of the server and try again, and it does so before anybody can change
// the error. So the codec lets such a message pass as one that holds nothing but
// a mark, and whoever receives messages looks for it.

// markingCodec is the codec of protobuf that marks instead of failing.
type markingCodec struct{ encoding.CodecV2 }

func newMarkingCodec() markingCodec {
	return markingCodec{encoding.GetCodecV2(grpcproto.Name)}
}

// markField is a field number that no message has. A caller who sets it is told
// that his message cannot be decoded, and no more.
const markField = protowire.Number(1<<29 - 1)

// Unmarshal implements encoding.CodecV2.
func (c markingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	m, ok := v.(proto.Message)
	if err == nil || !ok {
		return err
	}
	proto.Reset(m)
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, markField, protowire.BytesType), err.Error()))
	return nil
}

// undecodable returns the error of a message that carries the mark, or nil.
func undecodable(v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return nil
	}
	unknown := m.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return nil
	}
	field, kind, n := protowire.ConsumeTag(unknown)
	if n < 0 || field != markField || kind != protowire.BytesType {
		return nil
	}
	text, n := protowire.ConsumeString(unknown[n:])
	if n < 0 {
		text = "it is marked as such"
	}
	return &requestError{
		code: codes.InvalidArgument, reason: "UNDECODABLE",
		message: "the message is not an encoded request, in which all text is UTF-8: " + validUTF8(text),
	}
}

// A registrar registers services whose unary calls look for the mark; streams do
// so where they receive.
type registrar struct{ server *grpc.Server }

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, implementation any) {
	d := *desc
	d.Methods = slices.Clone(desc.Methods)
	for i := range d.Methods {
		handler := d.Methods[i].Handler
		d.Methods[i].Handler = func(service any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			return handler(service, ctx, func(message any) error {
				if err := decode(message); err != nil {
					return err
				}
				err := undecodable(message)
				if err == nil {
					return nil
				}
				// No interceptor sees this error.
				st, _ := toStatus(err)
				return st.Err()
			}, interceptor)
		}
	}
	r.server.RegisterService(&d, implementation)
}
