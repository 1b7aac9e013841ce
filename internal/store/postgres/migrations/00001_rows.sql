-- The same tables as in the other databases. Times are nanoseconds since 1970, 0 for "never". Flags are 0 or 1. Documents are
-- JSON, kept as they were written. An empty text means "none". Texts are compared byte by byte, whatever the language of the database.

-- +goose Up
CREATE TABLE templates (
    id                    TEXT COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    name                  TEXT COLLATE "C" NOT NULL,
    kind                  TEXT COLLATE "C" NOT NULL CHECK (kind IN ('template', 'snapshot')),
    display_name          TEXT COLLATE "C" NOT NULL,
    artifact_id           TEXT COLLATE "C" NOT NULL,
    parent_id             TEXT COLLATE "C" NOT NULL,
    origin_sandbox        TEXT COLLATE "C" NOT NULL,
    ephemeral             SMALLINT NOT NULL CHECK (ephemeral IN (0, 1)),
    labels                TEXT COLLATE "C" NOT NULL CHECK (json_typeof(labels::json) = 'object'),
    created_at            BIGINT NOT NULL,
    status                TEXT COLLATE "C" NOT NULL CHECK (status IN ('PENDING', 'CREATING', 'READY', 'PARTIALLY_READY', 'FAILED', 'DELETING', 'DELETED')),
    image_reference       TEXT COLLATE "C" NOT NULL,
    image_digest          TEXT COLLATE "C" NOT NULL,
    image_platform        TEXT COLLATE "C" NOT NULL,
    kernel_id             TEXT COLLATE "C" NOT NULL,
    egress_ca_baked       SMALLINT NOT NULL CHECK (egress_ca_baked IN (0, 1)),
    egress_ca_fingerprint TEXT COLLATE "C" NOT NULL,
    egress_ca_targets     BIGINT NOT NULL,
    vcpus                 BIGINT NOT NULL,
    memory_mib            BIGINT NOT NULL,
    disk_mib              BIGINT NOT NULL,
    process               TEXT COLLATE "C" NOT NULL CHECK (json_typeof(process::json) IS NOT NULL),
    readiness             TEXT COLLATE "C" NOT NULL CHECK (json_typeof(readiness::json) IS NOT NULL),
    version               TEXT COLLATE "C" NOT NULL,
    engine                TEXT COLLATE "C" NOT NULL,
    storage_backend       TEXT COLLATE "C" NOT NULL,
    retain                SMALLINT NOT NULL CHECK (retain IN (0, 1)),
    policy                TEXT COLLATE "C" NOT NULL CHECK (policy IN ('', 'STRICT', 'GUEST_ONLY')),
    replica_policy        TEXT COLLATE "C" NOT NULL CHECK (json_typeof(replica_policy::json) = 'object'),
    rootfs_size_bytes     BIGINT NOT NULL,
    request               BYTEA,
    author                TEXT COLLATE "C" NOT NULL,
    reason                TEXT COLLATE "C" NOT NULL,
    origin_node           TEXT COLLATE "C" NOT NULL,
    memory_bytes          BIGINT NOT NULL,
    disk_bytes            BIGINT NOT NULL,
    last_error            TEXT COLLATE "C" NOT NULL,
    job_id                TEXT COLLATE "C" NOT NULL,
    updated_at            BIGINT NOT NULL
);
CREATE UNIQUE INDEX templates_live_name ON templates (name) WHERE name <> '' AND status NOT IN ('DELETING', 'DELETED');
CREATE INDEX templates_page ON templates (created_at, id);
-- Lists leave out what is deleted and what is ephemeral unless asked; these indexes do too.
CREATE INDEX templates_live_page ON templates (created_at, id) WHERE status NOT IN ('DELETING', 'DELETED') AND ephemeral = 0;
CREATE INDEX templates_live_kind_page ON templates (kind, created_at, id) WHERE status NOT IN ('DELETING', 'DELETED') AND ephemeral = 0;
CREATE INDEX templates_ephemeral_page ON templates (created_at, id) WHERE ephemeral = 1;
CREATE INDEX templates_status_page ON templates (status, created_at, id);
CREATE INDEX templates_kind_page ON templates (kind, created_at, id);
CREATE INDEX templates_kind_status_page ON templates (kind, status, created_at, id);
CREATE INDEX templates_name_page ON templates (name, created_at, id) WHERE name <> '';
CREATE INDEX templates_display_name_page ON templates (display_name, created_at, id) WHERE display_name <> '';
CREATE INDEX templates_artifact_page ON templates (artifact_id, created_at, id) WHERE artifact_id <> '';
CREATE INDEX templates_origin_page ON templates (origin_sandbox, created_at, id) WHERE origin_sandbox <> '';
CREATE INDEX templates_parent_page ON templates (parent_id, created_at, id) WHERE parent_id <> '';

-- Each label of a row once more, in the order of lists: the rows with a label are found one after the other, however few or many.
CREATE TABLE template_labels (
    of_id         TEXT COLLATE "C" NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    key           TEXT COLLATE "C" NOT NULL,
    value         TEXT COLLATE "C" NOT NULL,
    of_created_at BIGINT NOT NULL,
    PRIMARY KEY (of_id, key)
);
CREATE INDEX template_labels_page ON template_labels (key, value, of_created_at, of_id);

CREATE TABLE aliases (
    name        TEXT COLLATE "C" NOT NULL CHECK (name <> ''),
    tag         TEXT COLLATE "C" NOT NULL CHECK (tag <> ''),
    template_id TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    author      TEXT COLLATE "C" NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (name, tag)
);
CREATE INDEX aliases_template ON aliases (template_id, name, tag);

-- An empty template_id: the alias was removed then.
CREATE TABLE alias_history (
    seq         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        TEXT COLLATE "C" NOT NULL,
    tag         TEXT COLLATE "C" NOT NULL,
    template_id TEXT COLLATE "C" NOT NULL,
    author      TEXT COLLATE "C" NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL,
    updated_at  BIGINT NOT NULL
);
CREATE INDEX alias_history_name ON alias_history (name, seq);
CREATE INDEX alias_history_tag ON alias_history (name, tag, seq);

CREATE TABLE artifacts (
    id                    TEXT COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    status                TEXT COLLATE "C" NOT NULL CHECK (status IN ('PENDING', 'BUILDING', 'READY', 'FAILED', 'CLEANUP_PENDING', 'ORPHANED')),
    image_reference       TEXT COLLATE "C" NOT NULL,
    image_digest          TEXT COLLATE "C" NOT NULL,
    image_platform        TEXT COLLATE "C" NOT NULL,
    process               TEXT COLLATE "C" NOT NULL CHECK (json_typeof(process::json) IS NOT NULL),
    egress_ca_baked       SMALLINT NOT NULL CHECK (egress_ca_baked IN (0, 1)),
    egress_ca_fingerprint TEXT COLLATE "C" NOT NULL,
    egress_ca_targets     BIGINT NOT NULL,
    digest                TEXT COLLATE "C" NOT NULL,
    size_bytes            BIGINT NOT NULL,
    build_job_id          TEXT COLLATE "C" NOT NULL,
    last_error            TEXT COLLATE "C" NOT NULL,
    unused_at             BIGINT NOT NULL,
    tried_at              BIGINT NOT NULL,
    created_at            BIGINT NOT NULL,
    updated_at            BIGINT NOT NULL
);
CREATE INDEX artifacts_page ON artifacts (created_at, id);
CREATE INDEX artifacts_status_page ON artifacts (status, created_at, id);
CREATE INDEX artifacts_fair ON artifacts (status, tried_at, id);
CREATE INDEX artifacts_unused ON artifacts (unused_at) WHERE unused_at <> 0;

CREATE TABLE placements (
    artifact_id TEXT COLLATE "C" NOT NULL REFERENCES artifacts (id),
    node_id     TEXT COLLATE "C" NOT NULL CHECK (node_id <> ''),
    verified_at BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (artifact_id, node_id)
);
CREATE INDEX placements_node ON placements (node_id, artifact_id);

CREATE TABLE nodes (
    id                  TEXT COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    address             TEXT COLLATE "C" NOT NULL,
    state               TEXT COLLATE "C" NOT NULL CHECK (state IN ('READY', 'UNREACHABLE', 'FORGOTTEN')),
    state_reason        TEXT COLLATE "C" NOT NULL,
    draining            SMALLINT NOT NULL CHECK (draining IN (0, 1)),
    labels              TEXT COLLATE "C" NOT NULL CHECK (json_typeof(labels::json) = 'object'),
    engine              TEXT COLLATE "C" NOT NULL,
    components          TEXT COLLATE "C" NOT NULL CHECK (json_typeof(components::json) = 'object'),
    installed           TEXT COLLATE "C" NOT NULL CHECK (json_typeof(installed::json) IS NOT NULL),
    vcpus               BIGINT NOT NULL,
    memory_mib          BIGINT NOT NULL,
    memory_promised_mib BIGINT NOT NULL,
    sandboxes           BIGINT NOT NULL,
    storage             TEXT COLLATE "C" NOT NULL CHECK (json_typeof(storage::json) = 'object'),
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL,
    seen_at             BIGINT NOT NULL
);

CREATE TABLE controllers (
    id         TEXT COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL,
    fenced     SMALLINT NOT NULL CHECK (fenced IN (0, 1))
);

CREATE TABLE leases (
    name          TEXT COLLATE "C" PRIMARY KEY CHECK (name <> ''),
    holder        TEXT COLLATE "C" NOT NULL CHECK (holder <> ''),
    controller_id TEXT COLLATE "C" NOT NULL,
    ends_at       BIGINT NOT NULL
);
CREATE INDEX leases_controller ON leases (controller_id);

CREATE TABLE sandboxes (
    id           TEXT COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    template_id  TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    node_id      TEXT COLLATE "C" NOT NULL,
    labels       TEXT COLLATE "C" NOT NULL CHECK (json_typeof(labels::json) = 'object'),
    created_at   BIGINT NOT NULL,
    state        TEXT COLLATE "C" NOT NULL CHECK (state IN ('CREATING', 'RUNNING', 'PAUSED', 'FAILED', 'KILLED')),
    state_reason TEXT COLLATE "C" NOT NULL,
    generation   BIGINT NOT NULL CHECK (generation >= 0),
    vcpus        BIGINT NOT NULL,
    memory_mib   BIGINT NOT NULL,
    disk_mib     BIGINT NOT NULL,
    env          TEXT COLLATE "C" NOT NULL CHECK (json_typeof(env::json) = 'object'),
    cold         SMALLINT NOT NULL CHECK (cold IN (0, 1)),
    origin       TEXT COLLATE "C" NOT NULL,
    frozen_id    TEXT COLLATE "C" NOT NULL,
    updated_at   BIGINT NOT NULL,
    ends_at      BIGINT NOT NULL,
    on_end       TEXT COLLATE "C" NOT NULL CHECK (on_end IN ('', 'kill', 'pause'))
);
CREATE INDEX sandboxes_live_page ON sandboxes (created_at, id) WHERE state <> 'KILLED';
CREATE INDEX sandboxes_state_page ON sandboxes (state, created_at, id);
CREATE INDEX sandboxes_node_page ON sandboxes (node_id, created_at, id);
CREATE INDEX sandboxes_template_page ON sandboxes (template_id, created_at, id);
CREATE INDEX sandboxes_killed ON sandboxes (updated_at) WHERE state = 'KILLED';
CREATE INDEX sandboxes_end ON sandboxes (ends_at) WHERE ends_at <> 0 AND state <> 'KILLED';

CREATE TABLE sandbox_labels (
    of_id         TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    key           TEXT COLLATE "C" NOT NULL,
    value         TEXT COLLATE "C" NOT NULL,
    of_created_at BIGINT NOT NULL,
    PRIMARY KEY (of_id, key)
);
CREATE INDEX sandbox_labels_page ON sandbox_labels (key, value, of_created_at, of_id);

CREATE TABLE runtime_refs (
    id           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    template_id  TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    sandbox_id   TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id),
    node_id      TEXT COLLATE "C" NOT NULL,
    binding      TEXT COLLATE "C" NOT NULL,
    sandbox_gen  BIGINT NOT NULL,
    status       TEXT COLLATE "C" NOT NULL CHECK (status IN ('RESERVED', 'ACTIVE', 'RELEASED')),
    reason       TEXT COLLATE "C" NOT NULL,
    attached_at  BIGINT NOT NULL,
    released_at  BIGINT NOT NULL,
    lease_until  BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    last_error   TEXT COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX runtime_refs_held ON runtime_refs (sandbox_id, sandbox_gen) WHERE status IN ('RESERVED', 'ACTIVE');
CREATE INDEX runtime_refs_template ON runtime_refs (template_id, status);
CREATE INDEX runtime_refs_sandbox ON runtime_refs (sandbox_id);
CREATE INDEX runtime_refs_status ON runtime_refs (status, node_id);

CREATE TABLE replicas (
    template_id       TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    node_id           TEXT COLLATE "C" NOT NULL,
    status            TEXT COLLATE "C" NOT NULL CHECK (status IN ('READY', 'FAILED')),
    phase             TEXT COLLATE "C" NOT NULL CHECK (phase IN ('PENDING', 'DISTRIBUTING', 'DISTRIBUTED', 'SNAPSHOTTING', 'READY', 'FAILED', 'CLEANING')),
    artifact_id       TEXT COLLATE "C" NOT NULL,
    last_job_id       TEXT COLLATE "C" NOT NULL,
    last_error_phase  TEXT COLLATE "C" NOT NULL CHECK (last_error_phase IN ('', 'PENDING', 'DISTRIBUTING', 'DISTRIBUTED', 'SNAPSHOTTING', 'READY', 'FAILED', 'CLEANING')),
    error_message     TEXT COLLATE "C" NOT NULL,
    cleanup_required  SMALLINT NOT NULL CHECK (cleanup_required IN (0, 1)),
    attempts          BIGINT NOT NULL,
    retry_at          BIGINT NOT NULL,
    guest_image       TEXT COLLATE "C" NOT NULL, -- the components that it was frozen with
    agent             TEXT COLLATE "C" NOT NULL,
    kernel            TEXT COLLATE "C" NOT NULL,
    engine            TEXT COLLATE "C" NOT NULL,
    state_format      TEXT COLLATE "C" NOT NULL,
    cpu               TEXT COLLATE "C" NOT NULL,
    compat_status     TEXT COLLATE "C" NOT NULL CHECK (compat_status IN ('', 'OK', 'STALE', 'UNKNOWN', 'MISSING')),
    compat_policy     TEXT COLLATE "C" NOT NULL CHECK (compat_policy IN ('', 'STRICT', 'GUEST_ONLY')),
    compat_checked_at BIGINT NOT NULL,
    verified_at       BIGINT NOT NULL,
    updated_at        BIGINT NOT NULL,
    PRIMARY KEY (template_id, node_id)
);
CREATE INDEX replicas_node_page ON replicas (node_id, template_id);
CREATE INDEX replicas_status_page ON replicas (status, template_id, node_id);
CREATE INDEX replicas_phase_page ON replicas (phase, template_id, node_id);
CREATE INDEX replicas_compat_page ON replicas (compat_status, template_id, node_id) WHERE compat_status <> '';
CREATE INDEX replicas_artifact ON replicas (artifact_id) WHERE artifact_id <> '';

CREATE TABLE jobs (
    id              TEXT COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    operation       TEXT COLLATE "C" NOT NULL CHECK (operation IN ('CREATE', 'REDO', 'COMMIT', 'LEGACY', 'DELETE', 'REPLICATE', 'SNAPSHOT_CREATE',
                                                       'SNAPSHOT_ROLLBACK', 'SNAPSHOT_DELETE', 'FORK', 'FLATTEN')),
    resource_type   TEXT COLLATE "C" NOT NULL CHECK (resource_type IN ('', 'template', 'snapshot')),
    resource_id     TEXT COLLATE "C" NOT NULL,
    sandbox_id      TEXT COLLATE "C" NOT NULL,
    request_id      TEXT COLLATE "C" NOT NULL,
    node_id         TEXT COLLATE "C" NOT NULL,
    artifact_id     TEXT COLLATE "C" NOT NULL,
    owner           TEXT COLLATE "C" NOT NULL,
    created_at      BIGINT NOT NULL,
    status          TEXT COLLATE "C" NOT NULL CHECK (status IN ('PENDING', 'RUNNING', 'READY', 'FAILED', 'CANCELLED')),
    redo            TEXT COLLATE "C" NOT NULL CHECK (json_typeof(redo::json) = 'object'),
    nodes_expected  BIGINT NOT NULL,
    nodes_ready     BIGINT NOT NULL,
    nodes_failed    BIGINT NOT NULL,
    phase           TEXT COLLATE "C" NOT NULL,
    progress        BIGINT NOT NULL CHECK (progress BETWEEN 0 AND 100),
    pull            TEXT COLLATE "C" NOT NULL CHECK (json_typeof(pull::json) IS NOT NULL),
    attempt_no      BIGINT NOT NULL,
    retry_of_job_id TEXT COLLATE "C" NOT NULL,
    error           TEXT COLLATE "C" NOT NULL CHECK (json_typeof(error::json) IS NOT NULL),
    request         BYTEA,
    result          BYTEA,
    cancel_asked    SMALLINT NOT NULL CHECK (cancel_asked IN (0, 1)),
    started_at      BIGINT NOT NULL,
    finished_at     BIGINT NOT NULL,
    queue_id        BIGINT NOT NULL DEFAULT 0 -- its place in the queue; the queue's tables are River's own
);
-- Forks and rollbacks only read what they start from, and each REPLICATE changes a replica of its own: any number may be under way.
CREATE UNIQUE INDEX jobs_active ON jobs (resource_id)
    WHERE resource_id <> '' AND status IN ('PENDING', 'RUNNING') AND operation NOT IN ('FORK', 'SNAPSHOT_ROLLBACK', 'REPLICATE');
CREATE INDEX jobs_page ON jobs (created_at, id);
CREATE INDEX jobs_status_page ON jobs (status, created_at, id);
CREATE INDEX jobs_operation_page ON jobs (operation, created_at, id);
CREATE INDEX jobs_resource_page ON jobs (resource_id, created_at, id) WHERE resource_id <> '';
CREATE INDEX jobs_sandbox_page ON jobs (sandbox_id, created_at, id) WHERE sandbox_id <> '';
CREATE INDEX jobs_node_page ON jobs (node_id, created_at, id) WHERE node_id <> '';
CREATE INDEX jobs_owner_page ON jobs (owner, created_at, id) WHERE owner <> '';
CREATE INDEX jobs_artifact ON jobs (artifact_id) WHERE artifact_id <> '' AND status IN ('PENDING', 'RUNNING');

CREATE TABLE job_log (
    job_id  TEXT COLLATE "C" NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq     BIGINT NOT NULL CHECK (seq > 0),
    time    BIGINT NOT NULL,
    level   TEXT COLLATE "C" NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    message TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (job_id, seq)
);

CREATE TABLE replays (
    caller      TEXT COLLATE "C" NOT NULL,
    key         TEXT COLLATE "C" NOT NULL,
    digest      TEXT COLLATE "C" NOT NULL,
    resource_id TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX replays_resource ON replays (resource_id);
CREATE INDEX replays_created ON replays (created_at);

-- +goose Down
DROP TABLE replays;
DROP TABLE job_log;
DROP TABLE jobs;
DROP TABLE replicas;
DROP TABLE runtime_refs;
DROP TABLE sandbox_labels;
DROP TABLE sandboxes;
DROP TABLE leases;
DROP TABLE controllers;
DROP TABLE nodes;
DROP TABLE placements;
DROP TABLE artifacts;
DROP TABLE alias_history;
DROP TABLE aliases;
DROP TABLE template_labels;
DROP TABLE templates;
