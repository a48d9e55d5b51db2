package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash"
	"hash/crc32"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A zookie is a revision and an instant of one cluster. Its token is the
// unpadded base64url form of
//
//	version 1 (1 byte) | cluster (16) | revision (8) | instant (8) | checksum (4)
//
// with integers in big-endian order and the checksum (CRC-32C) over all before
// it. A dialect gives it out in padded standard base64, and both are read alike.
// The checksum guards against accidents, not against forgery: a zookie grants
// nothing, for a node believes no instant that is far ahead of its clock.
type zookie struct {
	cluster  [16]byte
	revision graph.Revision
	instant  graph.Instant
}

// A cursor continues the answer to a question behind a place in its results. Its
// token has the form of a zookie's with version 2 and, before the checksum,
//
//	kind of question (1 byte) | hash of the arguments (16) | position (rest)
type cursor struct {
	zookie
	kind      questionKind
	arguments argumentHash
	// position is the question's own: see tuplePosition and engine.Position.
	position []byte
}

// A questionKind says which call a cursor belongs to.
type questionKind byte

const (
	readTuples questionKind = iota + 1
	lookupResources
	lookupSubjects
	exportTuples
	listStores
	listSchemaVersions
	readChanges
	dialectQuestion
)

// pinned reports whether the cursors of a question continue at the revision and
// instant of its first answer. Those of the others are places in something that
// goes on: of listStores the name before, of listSchemaVersions the revision
// before, of readChanges, which watches share, a graph.Position.
func (k questionKind) pinned() bool { return k < listStores || k == dialectQuestion }

const (
	zookieVersion  = 1
	cursorVersion  = 2
	stateBytes     = 1 + 16 + 8 + 8
	checksumBytes  = 4
	argumentsBytes = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// strictBase64 refuses tokens with stray bits in the last character, so that no
// two tokens of one alphabet mean the same. A zookie may also come in the alphabet
// of a dialect: see nativeToken.
var strictBase64 = base64.RawURLEncoding.Strict()

func (z zookie) appendState(b []byte, version byte) []byte {
	b = append(b, version)
	b = append(b, z.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(z.revision))
	return binary.BigEndian.AppendUint64(b, uint64(z.instant))
}

func seal(b []byte) string {
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	var room [2 * (stateBytes + checksumBytes)]byte // Most tokens are of that, and need no other.
	return string(strictBase64.AppendEncode(room[:0], b))
}

// open undoes seal; it returns nil when the token is not one of version's.
func open(token string, version byte) []byte {
	b, err := strictBase64.DecodeString(token)
	if err != nil || len(b) < stateBytes+checksumBytes || b[0] != version {
		return nil
	}
	if len(token) != strictBase64.EncodedLen(len(b)) {
		return nil // The decoder skips line breaks.
	}
	body, sum := b[:len(b)-checksumBytes], b[len(b)-checksumBytes:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return nil
	}
	return body
}

// state reads what appendState wrote; body is long enough.
func state(body []byte) zookie {
	var z zookie
	copy(z.cluster[:], body[1:])
	z.revision = graph.Revision(binary.BigEndian.Uint64(body[17:]))
	z.instant = graph.Instant(binary.BigEndian.Uint64(body[25:]))
	return z
}

// valid reports whether a node could have made z.
func (z zookie) valid() bool { return z.instant >= 0 }

func (z zookie) token() string {
	return seal(z.appendState(make([]byte, 0, stateBytes+checksumBytes), zookieVersion))
}

func (z zookie) proto() *pembav1.Zookie { return &pembav1.Zookie{Token: z.token()} }

// ZookieHeader is the header in which the answer to a streaming read carries its
// zookie before the first result, and also when there is none.
const ZookieHeader = "pemba-zookie"

// announce sends z ahead of the results of a stream.
func (z zookie) announce(stream grpc.ServerStream) error {
	return stream.SetHeader(metadata.Pairs(ZookieHeader, z.token()))
}

// parseZookie reads a token of the given cluster, one that a dialect gave out
// included. One of another cluster comes with the error.
func parseZookie(p *pembav1.Zookie, cluster [16]byte) (zookie, error) {
	z, _, err := parseToldZookie(p.GetToken(), cluster)
	return z, err
}

// parseToldZookie is parseZookie for who goes on behind what is known: told is how
// many of the revision's changes are, zero for all of them. Host.ChangesZookie makes
// the others.
func parseToldZookie(token string, cluster [16]byte) (z zookie, told uint32, err error) {
	invalid := &requestError{
		code: codes.InvalidArgument, reason: "ZOOKIE_INVALID", field: "token",
		message: "this is not a zookie; send the token of an earlier answer unchanged",
	}
	if len(token) > cursorBytesMax {
		return zookie{}, 0, invalid
	}
	token = nativeToken(token)
	body := open(token, zookieVersion)
	if body == nil {
		if body = open(token, changesVersion); len(body) != stateBytes+toldBytes {
			return zookie{}, 0, invalid
		}
		if told = binary.BigEndian.Uint32(body[stateBytes:]); told == 0 {
			return zookie{}, 0, invalid
		}
		body = body[:stateBytes]
	}
	if len(body) != stateBytes {
		return zookie{}, 0, invalid
	}
	if z = state(body); !z.valid() {
		return zookie{}, 0, invalid
	}
	if z.cluster != cluster {
		return z, 0, &requestError{
			code: codes.FailedPrecondition, reason: "ZOOKIE_FOREIGN", field: "token",
			message: "this zookie was made by another cluster; revisions of two clusters cannot be compared",
		}
	}
	return z, told, nil
}

func (c *cursor) token() string {
	b := c.appendState(make([]byte, 0, stateBytes+1+argumentsBytes+len(c.position)+checksumBytes), cursorVersion)
	b = append(b, byte(c.kind))
	b = append(b, c.arguments[:]...)
	return seal(append(b, c.position...))
}

// parseCursor reads a token that must belong to the given cluster and question.
func parseCursor(token string, cluster [16]byte, kind questionKind, arguments argumentHash) (*cursor, error) {
	invalid := func(message string) error {
		return &requestError{code: codes.InvalidArgument, reason: "CURSOR_INVALID", field: "cursor", message: message}
	}
	if len(token) > cursorBytesMax {
		return nil, invalid("this is not a cursor; send the cursor of an earlier answer unchanged")
	}
	body := open(token, cursorVersion)
	if len(body) < stateBytes+1+argumentsBytes {
		return nil, invalid("this is not a cursor; send the cursor of an earlier answer unchanged")
	}
	c := &cursor{zookie: state(body), kind: questionKind(body[stateBytes])}
	copy(c.arguments[:], body[stateBytes+1:])
	c.position = body[stateBytes+1+argumentsBytes:]
	switch {
	case !c.valid() || kind.pinned() && (c.revision == 0 || c.instant == 0):
		return nil, invalid("this is not a cursor; send the cursor of an earlier answer unchanged")
	case c.cluster != cluster:
		return nil, &requestError{
			code: codes.FailedPrecondition, reason: "ZOOKIE_FOREIGN", field: "cursor",
			message: "this cursor was made by another cluster; ask again without it",
		}
	case c.kind != kind:
		return nil, invalid("this cursor belongs to another kind of question")
	case c.arguments != arguments && !kind.pinned():
		return nil, invalid("this cursor belongs to another store; use it with the store that it was given for")
	case c.arguments != arguments:
		return nil, invalid("this cursor belongs to other arguments; only the limit and the consistency may change between pages, and all pages are of the revision of the first")
	}
	return c, nil
}

// A tuplePosition is the position of readTuples: how many tuples to skip behind
// a position of the graph's own. It lets every tuple of a page have a cursor
// although the graph gives out positions between pages only.
type tuplePosition struct {
	after []byte // nil at the beginning
	skip  int    // 0 <= skip <= pageTuples
}

func (p tuplePosition) append() []byte {
	b := binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen16+len(p.after)), uint64(p.skip))
	return append(b, p.after...)
}

func parseTuplePosition(b []byte) (tuplePosition, bool) {
	skip, n := binary.Uvarint(b)
	if n <= 0 || skip > pageTuples {
		return tuplePosition{}, false
	}
	p := tuplePosition{skip: int(skip)}
	if len(b) > n {
		p.after = b[n:]
	}
	return p, true
}

// changeCursor returns the token that continues behind a place of a store's
// change log. It is the same for watches and for reading changes, whatever their
// filters: it says what was looked at, not what was told.
func (s *Server) changeCursor(store graph.StoreInfo, p graph.Position) string {
	c := cursor{
		zookie: zookie{cluster: s.clusterID(), revision: p.Revision}, kind: readChanges,
		arguments: hashArguments(readChanges, storeArgument(store)).sum(),
		position:  binary.BigEndian.AppendUint32(nil, p.Offset),
	}
	return c.token()
}

// parseChangeCursor undoes changeCursor.
func (s *Server) parseChangeCursor(store graph.StoreInfo, token string) (graph.Position, error) {
	c, err := parseCursor(token, s.clusterID(), readChanges, hashArguments(readChanges, storeArgument(store)).sum())
	if err != nil {
		return graph.Position{}, err
	}
	if len(c.position) != 4 {
		return graph.Position{}, graph.ErrInvalidPosition
	}
	return graph.Position{Revision: c.revision, Offset: binary.BigEndian.Uint32(c.position)}, nil
}

// storeArgument is a store as an argument: by its number, since a store that was
// deleted and made again under its name is another.
func storeArgument(store graph.StoreInfo) string { return strconv.FormatUint(uint64(store.ID), 10) }

// An argumentHash stands for the arguments of a question that decide its
// results. It is the same on every node and in every version of the program.
type argumentHash [argumentsBytes]byte

// An argumentHasher collects arguments: each is preceded by its length, so that
// no two lists of arguments run together.
type argumentHasher struct{ h hash.Hash }

func hashArguments(kind questionKind, arguments ...string) argumentHasher {
	a := argumentHasher{sha256.New()}
	a.add(string([]byte{byte(kind)}))
	for _, s := range arguments {
		a.add(s)
	}
	return a
}

func (a argumentHasher) add(s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	// A hash never returns an error.
	_, _ = a.h.Write(n[:])
	_, _ = a.h.Write([]byte(s))
}

// addContext adds a context; it has come from JSON values and so goes back.
func (a argumentHasher) addContext(c schema.Context) error {
	if len(c) == 0 {
		a.add("")
		return nil
	}
	b, err := json.Marshal(c)
	if err != nil {
		return malformed("context", "it cannot be written as JSON: %v", err)
	}
	a.add(string(b))
	return nil
}

func (a argumentHasher) sum() argumentHash { return argumentHash(a.h.Sum(nil)[:argumentsBytes]) }
