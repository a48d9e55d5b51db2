// What a program does with @authzed/authzed-node, unchanged: node client.js
// HOST:PORT KEY. It says "ok" when every answer is the one that was expected, and
// fails at the first that is not.
import assert from "node:assert/strict";
import { status } from "@grpc/grpc-js";
import { v1 } from "@authzed/authzed-node";

const [address, key] = process.argv.slice(2);
const client = v1.NewClient(key, address, v1.ClientSecurity.INSECURE_PLAINTEXT_CREDENTIALS);
const { promises } = client;

const schema = `caveat soon(limit int) {
	limit < 5
}

definition user {}

definition document {
	relation viewer: user | user:* | user with soon
	relation banned: user
	permission view = viewer - banned
}`;

const object = (objectType, objectId) => v1.ObjectReference.create({ objectType, objectId });
const user = (id) => v1.SubjectReference.create({ object: object("user", id) });
const relationship = (document, relation, subject, caveat) =>
  v1.Relationship.create({
    resource: object("document", document),
    relation,
    subject: user(subject),
    optionalCaveat: caveat,
  });
const update = (operation, of) => v1.RelationshipUpdate.create({ operation, relationship: of });
const at = (token) =>
  v1.Consistency.create({ requirement: { oneofKind: "atLeastAsFresh", atLeastAsFresh: token } });
const fully = v1.Consistency.create({
  requirement: { oneofKind: "fullyConsistent", fullyConsistent: true },
});
const { CREATE, TOUCH } = v1.RelationshipUpdate_Operation;
const { HAS_PERMISSION, NO_PERMISSION, CONDITIONAL_PERMISSION } =
  v1.CheckPermissionResponse_Permissionship;
const textOf = (r) =>
  `${r.resource.objectType}:${r.resource.objectId}#${r.relation}@${r.subject.object.objectType}:${r.subject.object.objectId}`;

// A schema, and what it was read back as.
await assert.rejects(promises.readSchema(v1.ReadSchemaRequest.create({})), { code: status.NOT_FOUND });
const { writtenAt } = await promises.writeSchema(v1.WriteSchemaRequest.create({ schema }));
const read = await promises.readSchema(v1.ReadSchemaRequest.create({}));
assert.match(read.schemaText, /permission view = viewer - banned/);

// A watch from before the first write; what it tells is looked at below.
const watch = client.watch(
  v1.WatchRequest.create({ optionalObjectTypes: ["document"], optionalStartCursor: writtenAt }),
);
const watched = [];
const told = new Promise((resolve, reject) => {
  watch.on("data", (response) => {
    for (const u of response.updates) {
      watched.push(`${v1.RelationshipUpdate_Operation[u.operation]} ${textOf(u.relationship)}`);
    }
    if (watched.length >= 6) resolve();
  });
  watch.on("error", reject);
});

// Writes.
const caveat = v1.ContextualizedCaveat.create({ caveatName: "soon" });
const first = [
  update(CREATE, relationship("readme", "viewer", "anne")),
  update(TOUCH, relationship("plan", "viewer", "*")),
  update(TOUCH, relationship("plan", "banned", "bob")),
  update(TOUCH, relationship("plan", "banned", "carl")),
  update(TOUCH, relationship("draft", "viewer", "anne", caveat)),
];
const written = await promises.writeRelationships(v1.WriteRelationshipsRequest.create({ updates: first }));
assert.ok(written.writtenAt.token.length > 0);

// Checks.
const check = (document, subject, context) =>
  promises.checkPermission(
    v1.CheckPermissionRequest.create({
      consistency: at(written.writtenAt),
      resource: object("document", document),
      permission: "view",
      subject: user(subject),
      context,
    }),
  );
assert.equal((await check("readme", "anne")).permissionship, HAS_PERMISSION);
assert.equal((await check("readme", "bob")).permissionship, NO_PERMISSION);
assert.equal((await check("plan", "bob")).permissionship, NO_PERMISSION);
assert.equal((await check("plan", "zoe")).permissionship, HAS_PERMISSION);
const open = await check("draft", "anne");
assert.equal(open.permissionship, CONDITIONAL_PERMISSION);
assert.deepEqual(open.partialCaveatInfo.missingRequiredContext, ["limit"]);
const given = (limit) => v1.PbStruct.fromJson({ limit });
assert.equal((await check("draft", "anne", given(1))).permissionship, HAS_PERMISSION);
assert.equal((await check("draft", "anne", given(9))).permissionship, NO_PERMISSION);
const bulk = await promises.checkBulkPermissions(
  v1.CheckBulkPermissionsRequest.create({
    consistency: fully,
    items: ["anne", "bob"].map((id) =>
      v1.CheckBulkPermissionsRequestItem.create({
        resource: object("document", "readme"),
        permission: "view",
        subject: user(id),
      }),
    ),
  }),
);
assert.deepEqual(
  bulk.pairs.map((p) => p.response.item.permissionship),
  [HAS_PERMISSION, NO_PERMISSION],
);

// Lookups, in one call and in pages.
const lookup = (limit, cursor) =>
  promises.lookupResources(
    v1.LookupResourcesRequest.create({
      consistency: fully,
      resourceObjectType: "document",
      permission: "view",
      subject: user("anne"),
      optionalLimit: limit,
      optionalCursor: cursor,
    }),
  );
const found = await lookup(0);
assert.deepEqual(
  found.map((r) => [r.resourceObjectId, v1.LookupPermissionship[r.permissionship]]).sort(),
  [["draft", "CONDITIONAL_PERMISSION"], ["plan", "HAS_PERMISSION"], ["readme", "HAS_PERMISSION"]],
);
const page = await lookup(2);
const rest = await lookup(2, page[1].afterResultCursor);
assert.deepEqual(
  [...page, ...rest].map((r) => r.resourceObjectId).sort(),
  ["draft", "plan", "readme"],
);
const subjects = await promises.lookupSubjects(
  v1.LookupSubjectsRequest.create({
    consistency: fully,
    resource: object("document", "plan"),
    permission: "view",
    subjectObjectType: "user",
  }),
);
assert.deepEqual(
  subjects.map((s) => [
    s.subject.subjectObjectId,
    s.excludedSubjects.map((e) => e.subjectObjectId).sort(),
  ]),
  [["*", ["bob", "carl"]]],
);

// An import, and an export that has it.
const imported = await new Promise((resolve, reject) => {
  const stream = client.importBulkRelationships((err, response) => (err ? reject(err) : resolve(response)));
  for (let m = 0; m < 3; m++) {
    const relationships = Array.from({ length: 100 }, (_, i) => relationship(`d${m}_${i}`, "banned", "dora"));
    stream.write(v1.ImportBulkRelationshipsRequest.create({ relationships }));
  }
  stream.end();
});
assert.equal(Number(imported.numLoaded), 300);
const pages = await promises.exportBulkRelationships(
  v1.ExportBulkRelationshipsRequest.create({ consistency: fully, optionalLimit: 70 }),
);
assert.ok(pages.every((p) => p.relationships.length <= 70 && p.afterResultCursor.token.length > 0));
const exported = new Set(pages.flatMap((p) => p.relationships.map(textOf)));
assert.equal(exported.size, 305);
for (const u of first) assert.ok(exported.has(textOf(u.relationship)), textOf(u.relationship));

// Deletes, and reads of what is left.
const filter = v1.RelationshipFilter.create({ resourceType: "document", optionalResourceId: "readme" });
const deleted = await promises.deleteRelationships(
  v1.DeleteRelationshipsRequest.create({ relationshipFilter: filter }),
);
assert.equal(deleted.deletionProgress, v1.DeleteRelationshipsResponse_DeletionProgress.COMPLETE);
assert.equal(Number(deleted.relationshipsDeletedCount), 1);
const left = await promises.readRelationships(
  v1.ReadRelationshipsRequest.create({ consistency: fully, relationshipFilter: filter }),
);
assert.deepEqual(left, []);

// An error, with the reason that programs tell it by.
const again = v1.WriteRelationshipsRequest.create({
  updates: [update(CREATE, relationship("plan", "banned", "bob"))],
});
const refused = await promises.writeRelationships(again).catch((err) => err);
assert.equal(refused.code, status.ALREADY_EXISTS);
const details = Buffer.concat(refused.metadata.get("grpc-status-details-bin")).toString("latin1");
assert.ok(details.includes("ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP") && details.includes("authzed.com"), details);
const stranger = v1.NewClient("wrong", address, v1.ClientSecurity.INSECURE_PLAINTEXT_CREDENTIALS);
await assert.rejects(stranger.promises.readSchema(v1.ReadSchemaRequest.create({})), {
  code: status.PERMISSION_DENIED,
});
stranger.close();

// What the watch has told by now.
await told;
assert.deepEqual(watched.slice(0, 5).sort(), first.map((u) => `TOUCH ${textOf(u.relationship)}`).sort());
watch.on("error", () => {}); // That of the cancellation.
watch.cancel();
client.close();
console.log("ok");
