package authzed

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// exportBatchBytes is how large a page of an export may become, whatever its
// limit: clients take messages of 4 MiB by default, and for one that is slow a few
// of them wait.
const exportBatchBytes = 64 << 10

func (s *permissionsService) ImportBulkRelationships(stream grpc.ClientStreamingServer[v1.ImportBulkRelationshipsRequest, v1.ImportBulkRelationshipsResponse]) error {
	loaded, err := s.importAll(stream.Context(), func() (importMessage, error) { return stream.Recv() })
	if err != nil {
		return err
	}
	return stream.SendAndClose(&v1.ImportBulkRelationshipsResponse{NumLoaded: loaded})
}

// An importMessage is one of the messages that an import is sent in.
type importMessage interface {
	Validate() error
	GetRelationships() []*v1.Relationship
}

// importAll creates the relationships that receive gives until io.EOF, all of them
// or none, and returns how many. An error that names a place names the message too,
// of which the first is messages[0]. Each message is staged before the next is
// received, so that the flow control of gRPC slows down a caller who is faster than
// the disk.
func (a *adapter) importAll(ctx context.Context, receive func() (importMessage, error)) (loaded uint64, err error) {
	store, err := a.host.Store(ctx)
	if err != nil {
		return 0, err
	}
	staged := a.host.Import(store)
	defer func() {
		if err != nil {
			staged.Forget()
		}
	}()
	for n := 0; ; n++ {
		message, err := receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if err := message.Validate(); err != nil {
			return 0, invalid("messages[%d]: %v", n, err)
		}
		relationships := message.GetRelationships()
		for begin := 0; begin < len(relationships); {
			end := chunkEnd(relationships, begin, a.host.Limits().ImportTuples)
			place := func(i int) string { return fmt.Sprintf("messages[%d].relationships[%d]", n, begin+i) }
			updates := make([]graph.Update, end-begin)
			for i, r := range relationships[begin:end] {
				if err := r.HandwrittenValidate(); err != nil {
					return 0, invalid("%s: %v", place(i), err)
				}
				t, err := toTuple(place(i), r)
				if err != nil {
					return 0, err
				}
				updates[i] = graph.Update{Operation: graph.Create, Tuple: t}
			}
			if err := staged.Add(ctx, updates); err != nil {
				return 0, refusedImport(err, updates, place)
			}
			begin = end
			loaded += uint64(len(updates))
		}
	}
	if loaded == 0 {
		return 0, nil
	}
	if _, err := staged.Commit(ctx); err != nil {
		return 0, refusedImport(err, nil, nil)
	}
	return loaded, nil
}

// importChunkBytes is about how much of a message is staged at once: each chunk is an
// entry of the log, which takes some 900 KiB, and contexts are stored as JSON, which
// may be longer than what is sent.
const importChunkBytes = 128 << 10

// chunkEnd returns where the chunk ends that begins at a place: behind at most most
// relationships, and where they have importChunkBytes.
func chunkEnd(relationships []*v1.Relationship, begin, most int) int {
	bytes := 0
	for i := begin; i < len(relationships); i++ {
		if bytes += proto.Size(relationships[i]); i > begin && bytes > importChunkBytes || i-begin == most {
			return i
		}
	}
	return len(relationships)
}

// refusedImport is refusedChange for an import, where a relationship that comes
// twice is one that was created already when it came again. Place says where in the
// import each of the updates stands.
func refusedImport(err error, updates []graph.Update, place func(i int) string) error {
	err = refusedChange(err, updates, nil)
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	r := *refusal
	if r.Reason == engine.DuplicateUpdate {
		r.Reason = engine.AlreadyExists
	}
	var i int
	if _, scan := fmt.Sscanf(r.Field, "updates[%d]", &i); scan == nil && i < len(updates) {
		r.Field = place(i)
	}
	return &r
}

func (s *permissionsService) ExportBulkRelationships(r *v1.ExportBulkRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error {
	if err := validate(r); err != nil {
		return err
	}
	return exportAll(s.adapter, stream, r, func(page []*v1.Relationship, cursor *v1.Cursor) *v1.ExportBulkRelationshipsResponse {
		return &v1.ExportBulkRelationshipsResponse{Relationships: page, AfterResultCursor: cursor}
	})
}

// exportAll streams pages of relationships, sorted by type, id and relation of
// their resources.
func exportAll[M proto.Message](a *adapter, stream grpc.ServerStream, r interface {
	GetConsistency() *v1.Consistency
	GetOptionalLimit() uint32
	GetOptionalCursor() *v1.Cursor
	GetOptionalRelationshipFilter() *v1.RelationshipFilter
}, message func(page []*v1.Relationship, cursor *v1.Cursor) M,
) error {
	ctx := stream.Context()
	if err := exceeds(r.GetOptionalLimit(), exportLimitMax); err != nil {
		return err
	}
	size := int(r.GetOptionalLimit())
	if size == 0 {
		size = exportPage
	}
	var filter graph.Filter
	if f := r.GetOptionalRelationshipFilter(); f != nil {
		var err error
		if filter, err = toFullFilter(f); err != nil {
			return err
		}
	}
	read, err := a.open(ctx, r.GetConsistency(), r.GetOptionalCursor(), "ExportBulkRelationships", filter)
	if err != nil {
		return err
	}
	defer read.snapshot.Close()
	produce := func(ctx context.Context, put func(M) error) error {
		var last func() []byte
		pages := api.Pager[*v1.Relationship]{Most: size, BytesMax: exportBatchBytes, Put: func(page []*v1.Relationship) error {
			return put(message(page, read.cursor(last())))
		}}
		err := api.EachTupleSorted(ctx, read.snapshot, filter, read.position, func(t graph.Tuple, position func() []byte) (more bool, err error) {
			relationship, err := fromTuple(t)
			if err != nil {
				return false, err
			}
			last = position
			return true, pages.Add(relationship)
		})
		if err != nil {
			return err
		}
		return pages.Flush()
	}
	return api.FeedBatches(ctx, a.host, produce, stream)
}

// The calls below are older names of those of PermissionsService, which clients
// still use.

func (s *experimentalService) BulkImportRelationships(stream grpc.ClientStreamingServer[v1.BulkImportRelationshipsRequest, v1.BulkImportRelationshipsResponse]) error {
	loaded, err := s.importAll(stream.Context(), func() (importMessage, error) { return stream.Recv() })
	if err != nil {
		return err
	}
	return stream.SendAndClose(&v1.BulkImportRelationshipsResponse{NumLoaded: loaded})
}

func (s *experimentalService) BulkExportRelationships(r *v1.BulkExportRelationshipsRequest, stream grpc.ServerStreamingServer[v1.BulkExportRelationshipsResponse]) error {
	if err := validate(r); err != nil {
		return err
	}
	return exportAll(s.adapter, stream, r, func(page []*v1.Relationship, cursor *v1.Cursor) *v1.BulkExportRelationshipsResponse {
		return &v1.BulkExportRelationshipsResponse{Relationships: page, AfterResultCursor: cursor}
	})
}

func (s *experimentalService) BulkCheckPermission(ctx context.Context, r *v1.BulkCheckPermissionRequest) (*v1.BulkCheckPermissionResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	question := &v1.CheckBulkPermissionsRequest{Consistency: r.GetConsistency()}
	for _, item := range r.GetItems() { //nolint:staticcheck // The deprecated name is what is served.
		question.Items = append(question.Items, &v1.CheckBulkPermissionsRequestItem{
			Resource: item.GetResource(), Permission: item.GetPermission(), Subject: item.GetSubject(), Context: item.GetContext(),
		})
	}
	answer, err := s.permissions.CheckBulkPermissions(ctx, question)
	if err != nil {
		return nil, err
	}
	response := &v1.BulkCheckPermissionResponse{CheckedAt: answer.GetCheckedAt()}
	for _, p := range answer.GetPairs() {
		q := p.GetRequest()
		pair := &v1.BulkCheckPermissionPair{Request: &v1.BulkCheckPermissionRequestItem{
			Resource: q.GetResource(), Permission: q.GetPermission(), Subject: q.GetSubject(), Context: q.GetContext(),
		}}
		if failed := p.GetError(); failed != nil {
			pair.Response = &v1.BulkCheckPermissionPair_Error{Error: failed}
		} else {
			pair.Response = &v1.BulkCheckPermissionPair_Item{Item: &v1.BulkCheckPermissionResponseItem{
				Permissionship: p.GetItem().GetPermissionship(), PartialCaveatInfo: p.GetItem().GetPartialCaveatInfo(),
			}}
		}
		response.Pairs = append(response.Pairs, pair)
	}
	return response, nil
}
