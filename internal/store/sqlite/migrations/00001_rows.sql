-- Times are nanoseconds since 1970, 0 for "never". Documents are JSON. An empty text means "none".

-- +goose Up
CREATE TABLE templates (
    id                    TEXT PRIMARY KEY CHECK (id <> ''),
    name                  TEXT NOT NULL,
    kind                  TEXT NOT NULL CHECK (kind IN ('template', 'snapshot')),
    status                TEXT NOT NULL CHECK (status IN ('PENDING', 'CREATING', 'READY', 'PARTIALLY_READY', 'FAILED', 'DELETING', 'DELETED')),
    image_reference       TEXT NOT NULL,
    image_digest          TEXT NOT NULL,
    image_platform        TEXT NOT NULL,
    artifact_id           TEXT NOT NULL,
    kernel_id             TEXT NOT NULL,
    egress_ca_baked       INTEGER NOT NULL CHECK (egress_ca_baked IN (0, 1)),
    egress_ca_fingerprint TEXT NOT NULL,
    egress_ca_targets     INTEGER NOT NULL,
    vcpus                 INTEGER NOT NULL,
    memory_mib            INTEGER NOT NULL,
    disk_mib              INTEGER NOT NULL,
    process               TEXT NOT NULL CHECK (json_valid(process)),
    readiness             TEXT NOT NULL CHECK (json_valid(readiness)),
    parent_id             TEXT NOT NULL,
    origin_sandbox        TEXT NOT NULL,
    origin_node           TEXT NOT NULL,
    ephemeral             INTEGER NOT NULL CHECK (ephemeral IN (0, 1)),
    labels                TEXT NOT NULL CHECK (json_type(labels) = 'object'),
    memory_bytes          INTEGER NOT NULL,
    disk_bytes            INTEGER NOT NULL,
    last_error            TEXT NOT NULL,
    job_id                TEXT NOT NULL,
    created_at            INTEGER NOT NULL,
    updated_at            INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX templates_live_name ON templates (name) WHERE name <> '' AND status NOT IN ('DELETING', 'DELETED');
CREATE INDEX templates_page ON templates (created_at, id);
CREATE INDEX templates_live_page ON templates (created_at, id) WHERE status NOT IN ('DELETING', 'DELETED');
CREATE INDEX templates_live_kind_page ON templates (kind, created_at, id) WHERE status NOT IN ('DELETING', 'DELETED');
CREATE INDEX templates_ephemeral_page ON templates (created_at, id) WHERE ephemeral = 1;
CREATE INDEX templates_status_page ON templates (status, created_at, id);
CREATE INDEX templates_origin_page ON templates (origin_sandbox, created_at, id) WHERE origin_sandbox <> '';
CREATE INDEX templates_parent_page ON templates (parent_id, created_at, id) WHERE parent_id <> '';

CREATE TABLE sandboxes (
    id           TEXT PRIMARY KEY CHECK (id <> ''),
    state        TEXT NOT NULL CHECK (state IN ('CREATING', 'RUNNING', 'PAUSED', 'FAILED', 'KILLED')),
    state_reason TEXT NOT NULL,
    template_id  TEXT NOT NULL REFERENCES templates (id),
    node_id      TEXT NOT NULL,
    generation   INTEGER NOT NULL CHECK (generation >= 0),
    vcpus        INTEGER NOT NULL,
    memory_mib   INTEGER NOT NULL,
    disk_mib     INTEGER NOT NULL,
    labels       TEXT NOT NULL CHECK (json_type(labels) = 'object'),
    env          TEXT NOT NULL CHECK (json_type(env) = 'object'),
    cold         INTEGER NOT NULL CHECK (cold IN (0, 1)),
    frozen_id    TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    ends_at      INTEGER NOT NULL,
    on_end       TEXT NOT NULL CHECK (on_end IN ('', 'kill', 'pause'))
) STRICT;
CREATE INDEX sandboxes_page ON sandboxes (created_at, id);
CREATE INDEX sandboxes_live_page ON sandboxes (created_at, id) WHERE state <> 'KILLED';
CREATE INDEX sandboxes_killed ON sandboxes (updated_at) WHERE state = 'KILLED';
CREATE INDEX sandboxes_end ON sandboxes (ends_at) WHERE ends_at <> 0 AND state <> 'KILLED';
CREATE INDEX sandboxes_template_page ON sandboxes (template_id, created_at, id);

CREATE TABLE jobs (
    id              TEXT PRIMARY KEY CHECK (id <> ''),
    operation       TEXT NOT NULL CHECK (operation IN ('CREATE', 'REDO', 'COMMIT', 'LEGACY', 'DELETE', 'SNAPSHOT_CREATE',
                                                       'SNAPSHOT_ROLLBACK', 'SNAPSHOT_DELETE', 'FORK', 'FLATTEN')),
    resource_type   TEXT NOT NULL CHECK (resource_type IN ('', 'template', 'snapshot')),
    resource_id     TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('PENDING', 'RUNNING', 'READY', 'FAILED', 'CANCELLED')),
    phase           TEXT NOT NULL,
    progress        INTEGER NOT NULL CHECK (progress BETWEEN 0 AND 100),
    pull            TEXT NOT NULL CHECK (json_valid(pull)),
    attempt_no      INTEGER NOT NULL,
    retry_of_job_id TEXT NOT NULL,
    error           TEXT NOT NULL CHECK (json_valid(error)),
    request         BLOB,
    result          BLOB,
    cancel_asked    INTEGER NOT NULL CHECK (cancel_asked IN (0, 1)),
    created_at      INTEGER NOT NULL,
    started_at      INTEGER NOT NULL,
    finished_at     INTEGER NOT NULL,
    queue_id        INTEGER NOT NULL DEFAULT 0 -- its place in the queue; the queue's tables are River's own
) STRICT;
-- Forks and rollbacks only read what they start from: any number may be under way.
CREATE UNIQUE INDEX jobs_active ON jobs (resource_id)
    WHERE resource_id <> '' AND status IN ('PENDING', 'RUNNING') AND operation NOT IN ('FORK', 'SNAPSHOT_ROLLBACK');
CREATE INDEX jobs_page ON jobs (created_at, id);
CREATE INDEX jobs_status_page ON jobs (status, created_at, id);
CREATE INDEX jobs_resource_page ON jobs (resource_id, created_at, id) WHERE resource_id <> '';
CREATE INDEX jobs_sandbox_page ON jobs (sandbox_id, created_at, id) WHERE sandbox_id <> '';

CREATE TABLE job_log (
    job_id  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL CHECK (seq > 0),
    time    INTEGER NOT NULL,
    level   TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    message TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE runtime_refs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    template_id TEXT NOT NULL REFERENCES templates (id),
    sandbox_id  TEXT NOT NULL REFERENCES sandboxes (id),
    node_id     TEXT NOT NULL,
    binding     TEXT NOT NULL,
    sandbox_gen INTEGER NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('RESERVED', 'ACTIVE', 'RELEASED')),
    reason      TEXT NOT NULL,
    attached_at INTEGER NOT NULL,
    released_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX runtime_refs_held ON runtime_refs (sandbox_id, sandbox_gen) WHERE status IN ('RESERVED', 'ACTIVE');
CREATE INDEX runtime_refs_template ON runtime_refs (template_id, status);
CREATE INDEX runtime_refs_sandbox ON runtime_refs (sandbox_id);

CREATE TABLE replicas (
    template_id         TEXT NOT NULL REFERENCES templates (id),
    node_id             TEXT NOT NULL,
    status              TEXT NOT NULL CHECK (status IN ('READY', 'FAILED')),
    phase               TEXT NOT NULL,
    artifact_id         TEXT NOT NULL,
    last_job_id         TEXT NOT NULL,
    error_message       TEXT NOT NULL,
    guest_image_version TEXT NOT NULL,
    agent_version       TEXT NOT NULL,
    kernel_version      TEXT NOT NULL,
    engine              TEXT NOT NULL,
    state_format        TEXT NOT NULL,
    updated_at          INTEGER NOT NULL,
    PRIMARY KEY (template_id, node_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE replays (
    caller      TEXT NOT NULL,
    key         TEXT NOT NULL,
    digest      TEXT NOT NULL,
    resource_id TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX replays_resource ON replays (resource_id);
CREATE INDEX replays_created ON replays (created_at);

-- +goose Down
DROP TABLE replays;
DROP TABLE replicas;
DROP TABLE runtime_refs;
DROP TABLE job_log;
DROP TABLE jobs;
DROP TABLE sandboxes;
DROP TABLE templates;
