package api

import (
	"fmt"
	"strconv"

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

// markingCodec is the codec of protobuf that marks instead of failing when it
// decodes.
type markingCodec struct {
	encoding.CodecV2
	// bytesMax is how large a message may be; larger ones are marked undecoded.
	bytesMax int
}

func newMarkingCodec(bytesMax int) markingCodec {
	return markingCodec{encoding.GetCodecV2(grpcproto.Name), bytesMax}
}

// tooLargeFactor is how many times too large a message may be and still be
// refused with a reason. It is read to its end before that; what is larger yet
// gRPC cuts off.
const tooLargeFactor = 4

// The field numbers of marks, which no message has. A caller who sets one is told
// that his message cannot be decoded, and no more.
const (
	undecodableMark = protowire.Number(1<<29 - 1)
	tooLargeMark    = protowire.Number(1<<29 - 2)
)

// Unmarshal implements encoding.CodecV2.
func (c markingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	var mark []byte
	if n := data.Len(); n > c.bytesMax {
		mark = protowire.AppendVarint(protowire.AppendTag(nil, tooLargeMark, protowire.VarintType), uint64(n))
	} else if err := c.CodecV2.Unmarshal(data, v); err != nil {
		mark = protowire.AppendString(protowire.AppendTag(nil, undecodableMark, protowire.BytesType), err.Error())
	} else {
		return nil
	}
	proto.Reset(m)
	m.ProtoReflect().SetUnknown(mark)
	return nil
}

// pooledBytesMax is how large a message may be that gRPC keeps in a buffer about
// as large. Above it takes one of 1 MiB.
const pooledBytesMax = 32 << 10

// Marshal implements encoding.CodecV2. What it returns is kept until the client has
// taken it, so that a larger message has memory of its own.
func (c markingCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := proto.Size(m)
	if !mem.IsBelowBufferPoolingThreshold(size) && size <= pooledBytesMax {
		return c.CodecV2.Marshal(v)
	}
	data, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, size), m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

// undecodable returns the error of a message that carries a mark, or nil. The
// limit is what the codec had.
func undecodable(v any, bytesMax int) error {
	m, ok := v.(proto.Message)
	if !ok {
		return nil
	}
	unknown := m.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return nil
	}
	field, kind, n := protowire.ConsumeTag(unknown)
	switch {
	case n < 0:
	case field == tooLargeMark && kind == protowire.VarintType:
		size, _ := protowire.ConsumeVarint(unknown[n:])
		return &requestError{
			code: codes.ResourceExhausted, reason: "REQUEST_TOO_LARGE",
			message:  fmt.Sprintf("the request has %d bytes; at most %d are allowed; send several, or raise --limit-request-bytes of the server", size, bytesMax),
			metadata: map[string]string{"limit": strconv.Itoa(bytesMax)},
		}
	case field == undecodableMark && kind == protowire.BytesType:
		text, _ := protowire.ConsumeString(unknown[n:])
		return &requestError{
			code: codes.InvalidArgument, reason: "UNDECODABLE",
			message: "the message is not an encoded request, in which all text is UTF-8: " + validUTF8(text),
		}
	}
	return nil
}
