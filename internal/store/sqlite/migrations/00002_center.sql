-- The template center of many nodes: aliases, artifacts, nodes, controllers and leases; labels that can be searched; and what
-- templates, sandboxes, refs, replicas and jobs say beyond their first form. It runs with foreign keys off, so that tables can be
-- made anew under rows that refer to them.

-- +goose Up
ALTER TABLE templates ADD COLUMN version TEXT NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN engine TEXT NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN storage_backend TEXT NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN display_name TEXT NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN retain INTEGER NOT NULL DEFAULT 0 CHECK (retain IN (0, 1));
ALTER TABLE templates ADD COLUMN policy TEXT NOT NULL DEFAULT '' CHECK (policy IN ('', 'STRICT', 'GUEST_ONLY'));
ALTER TABLE templates ADD COLUMN replica_policy TEXT NOT NULL DEFAULT '{}' CHECK (json_type(replica_policy) = 'object');
ALTER TABLE templates ADD COLUMN rootfs_size_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE templates ADD COLUMN request BLOB;
ALTER TABLE templates ADD COLUMN author TEXT NOT NULL DEFAULT '';
ALTER TABLE templates ADD COLUMN reason TEXT NOT NULL DEFAULT '';
UPDATE templates SET version = 'v2', storage_backend = 'layers', policy = 'STRICT',
    engine = COALESCE((SELECT MAX(engine) FROM replicas WHERE template_id = templates.id), '');

-- Lists leave out what is deleted and what is ephemeral unless asked; these indexes do too.
DROP INDEX templates_live_page;
DROP INDEX templates_live_kind_page;
CREATE INDEX templates_live_page ON templates (created_at, id) WHERE status NOT IN ('DELETING', 'DELETED') AND ephemeral = 0;
CREATE INDEX templates_live_kind_page ON templates (kind, created_at, id) WHERE status NOT IN ('DELETING', 'DELETED') AND ephemeral = 0;
CREATE INDEX templates_kind_page ON templates (kind, created_at, id);
CREATE INDEX templates_kind_status_page ON templates (kind, status, created_at, id);
CREATE INDEX templates_name_page ON templates (name, created_at, id) WHERE name <> '';
CREATE INDEX templates_display_name_page ON templates (display_name, created_at, id) WHERE display_name <> '';
CREATE INDEX templates_artifact_page ON templates (artifact_id, created_at, id) WHERE artifact_id <> '';

-- Each label of a row once more, in the order of lists: the rows with a label are found one after the other, however few or many.
CREATE TABLE template_labels (
    of_id         TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    of_created_at INTEGER NOT NULL,
    PRIMARY KEY (of_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX template_labels_page ON template_labels (key, value, of_created_at, of_id);
INSERT INTO template_labels SELECT templates.id, label.key, label.value, created_at FROM templates, json_each(labels) AS label;

CREATE TABLE aliases (
    name        TEXT NOT NULL CHECK (name <> ''),
    tag         TEXT NOT NULL CHECK (tag <> ''),
    template_id TEXT NOT NULL REFERENCES templates (id),
    author      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (name, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_template ON aliases (template_id, name, tag);

-- An empty template_id: the alias was removed then.
CREATE TABLE alias_history (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL,
    tag         TEXT NOT NULL,
    template_id TEXT NOT NULL,
    author      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX alias_history_name ON alias_history (name, seq);
CREATE INDEX alias_history_tag ON alias_history (name, tag, seq);

CREATE TABLE artifacts (
    id                    TEXT PRIMARY KEY CHECK (id <> ''),
    status                TEXT NOT NULL CHECK (status IN ('PENDING', 'BUILDING', 'READY', 'FAILED', 'CLEANUP_PENDING', 'ORPHANED')),
    image_reference       TEXT NOT NULL,
    image_digest          TEXT NOT NULL,
    image_platform        TEXT NOT NULL,
    process               TEXT NOT NULL CHECK (json_valid(process)),
    egress_ca_baked       INTEGER NOT NULL CHECK (egress_ca_baked IN (0, 1)),
    egress_ca_fingerprint TEXT NOT NULL,
    egress_ca_targets     INTEGER NOT NULL,
    digest                TEXT NOT NULL,
    size_bytes            INTEGER NOT NULL,
    build_job_id          TEXT NOT NULL,
    last_error            TEXT NOT NULL,
    unused_at             INTEGER NOT NULL,
    tried_at              INTEGER NOT NULL,
    created_at            INTEGER NOT NULL,
    updated_at            INTEGER NOT NULL
) STRICT;
CREATE INDEX artifacts_page ON artifacts (created_at, id);
CREATE INDEX artifacts_status_page ON artifacts (status, created_at, id);
CREATE INDEX artifacts_fair ON artifacts (status, tried_at, id);
CREATE INDEX artifacts_unused ON artifacts (unused_at) WHERE unused_at <> 0;

CREATE TABLE placements (
    artifact_id TEXT NOT NULL REFERENCES artifacts (id),
    node_id     TEXT NOT NULL CHECK (node_id <> ''),
    verified_at INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (artifact_id, node_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX placements_node ON placements (node_id, artifact_id);

CREATE TABLE nodes (
    id                  TEXT PRIMARY KEY CHECK (id <> ''),
    address             TEXT NOT NULL,
    state               TEXT NOT NULL CHECK (state IN ('READY', 'UNREACHABLE', 'FORGOTTEN')),
    state_reason        TEXT NOT NULL,
    draining            INTEGER NOT NULL CHECK (draining IN (0, 1)),
    labels              TEXT NOT NULL CHECK (json_type(labels) = 'object'),
    engine              TEXT NOT NULL,
    components          TEXT NOT NULL CHECK (json_type(components) = 'object'),
    installed           TEXT NOT NULL CHECK (json_valid(installed)),
    vcpus               INTEGER NOT NULL,
    memory_mib          INTEGER NOT NULL,
    memory_promised_mib INTEGER NOT NULL,
    sandboxes           INTEGER NOT NULL,
    storage             TEXT NOT NULL CHECK (json_type(storage) = 'object'),
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    seen_at             INTEGER NOT NULL
) STRICT;

CREATE TABLE controllers (
    id         TEXT PRIMARY KEY CHECK (id <> ''),
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    fenced     INTEGER NOT NULL CHECK (fenced IN (0, 1))
) STRICT;

CREATE TABLE leases (
    name          TEXT PRIMARY KEY CHECK (name <> ''),
    holder        TEXT NOT NULL CHECK (holder <> ''),
    controller_id TEXT NOT NULL,
    ends_at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_controller ON leases (controller_id);

-- What is known of the artifacts so far is which templates were built on them. Whether their bytes are whole shows when somebody
-- looks.
INSERT INTO artifacts SELECT artifact_id, 'FAILED', image_reference, image_digest, image_platform, process,
    egress_ca_baked, egress_ca_fingerprint, egress_ca_targets, '', 0, '', 'not verified since the upgrade', 0, 0, created_at, updated_at
    FROM templates WHERE artifact_id <> '' AND id = (
        SELECT id FROM templates AS first WHERE first.artifact_id = templates.artifact_id AND status <> 'DELETED' ORDER BY created_at, id LIMIT 1);
INSERT INTO placements SELECT artifact_id, node_id, 0, MIN(updated_at) FROM replicas
    WHERE artifact_id IN (SELECT id FROM artifacts) AND node_id <> '' GROUP BY artifact_id, node_id;

ALTER TABLE sandboxes ADD COLUMN origin TEXT NOT NULL DEFAULT '';
-- Sandboxes and refs are written often, so they have few indexes: lists of several states go through one page of each.
DROP INDEX sandboxes_page;
DROP INDEX sandboxes_live_page;
CREATE INDEX sandboxes_state_page ON sandboxes (state, created_at, id);
CREATE INDEX sandboxes_node_page ON sandboxes (node_id, created_at, id);
CREATE TABLE sandbox_labels (
    of_id         TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    of_created_at INTEGER NOT NULL,
    PRIMARY KEY (of_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX sandbox_labels_page ON sandbox_labels (key, value, of_created_at, of_id);
INSERT INTO sandbox_labels SELECT sandboxes.id, label.key, label.value, created_at FROM sandboxes, json_each(labels) AS label;

ALTER TABLE runtime_refs ADD COLUMN lease_until INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runtime_refs ADD COLUMN last_seen_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runtime_refs ADD COLUMN last_error TEXT NOT NULL DEFAULT '';
-- One held ref for each generation, and any number of released ones.
DROP INDEX runtime_refs_held;
DROP INDEX runtime_refs_sandbox;
CREATE UNIQUE INDEX runtime_refs_sandbox ON runtime_refs (sandbox_id, sandbox_gen, (CASE WHEN status = 'RELEASED' THEN id ELSE 0 END));
CREATE INDEX runtime_refs_status ON runtime_refs (status, node_id);

CREATE TABLE new_replicas (
    template_id       TEXT NOT NULL REFERENCES templates (id),
    node_id           TEXT NOT NULL,
    status            TEXT NOT NULL CHECK (status IN ('READY', 'FAILED')),
    phase             TEXT NOT NULL CHECK (phase IN ('PENDING', 'DISTRIBUTING', 'DISTRIBUTED', 'SNAPSHOTTING', 'READY', 'FAILED', 'CLEANING')),
    artifact_id       TEXT NOT NULL,
    last_job_id       TEXT NOT NULL,
    last_error_phase  TEXT NOT NULL CHECK (last_error_phase IN ('', 'PENDING', 'DISTRIBUTING', 'DISTRIBUTED', 'SNAPSHOTTING', 'READY', 'FAILED', 'CLEANING')),
    error_message     TEXT NOT NULL,
    cleanup_required  INTEGER NOT NULL CHECK (cleanup_required IN (0, 1)),
    attempts          INTEGER NOT NULL,
    retry_at          INTEGER NOT NULL,
    guest_image       TEXT NOT NULL, -- the components that it was frozen with
    agent             TEXT NOT NULL,
    kernel            TEXT NOT NULL,
    engine            TEXT NOT NULL,
    state_format      TEXT NOT NULL,
    cpu               TEXT NOT NULL,
    compat_status     TEXT NOT NULL CHECK (compat_status IN ('', 'OK', 'STALE', 'UNKNOWN', 'MISSING')),
    compat_policy     TEXT NOT NULL CHECK (compat_policy IN ('', 'STRICT', 'GUEST_ONLY')),
    compat_checked_at INTEGER NOT NULL,
    verified_at       INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    PRIMARY KEY (template_id, node_id)
) STRICT, WITHOUT ROWID;
INSERT INTO new_replicas SELECT template_id, node_id, status, status, artifact_id, last_job_id, '', error_message, 0, 0, 0,
    guest_image_version, agent_version, kernel_version, engine, state_format, '', '', '', 0, 0, updated_at FROM replicas;
DROP TABLE replicas;
ALTER TABLE new_replicas RENAME TO replicas;
CREATE INDEX replicas_node_page ON replicas (node_id, template_id);
CREATE INDEX replicas_status_page ON replicas (status, template_id, node_id);
CREATE INDEX replicas_phase_page ON replicas (phase, template_id, node_id);
CREATE INDEX replicas_compat_page ON replicas (compat_status, template_id, node_id) WHERE compat_status <> '';
CREATE INDEX replicas_artifact ON replicas (artifact_id) WHERE artifact_id <> '';

CREATE TABLE new_jobs (
    id              TEXT PRIMARY KEY CHECK (id <> ''),
    operation       TEXT NOT NULL CHECK (operation IN ('CREATE', 'REDO', 'COMMIT', 'LEGACY', 'DELETE', 'REPLICATE', 'SNAPSHOT_CREATE',
                                                       'SNAPSHOT_ROLLBACK', 'SNAPSHOT_DELETE', 'FORK', 'FLATTEN')),
    resource_type   TEXT NOT NULL CHECK (resource_type IN ('', 'template', 'snapshot')),
    resource_id     TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('PENDING', 'RUNNING', 'READY', 'FAILED', 'CANCELLED')),
    request_id      TEXT NOT NULL,
    node_id         TEXT NOT NULL,
    artifact_id     TEXT NOT NULL,
    owner           TEXT NOT NULL,
    redo            TEXT NOT NULL CHECK (json_type(redo) = 'object'),
    nodes_expected  INTEGER NOT NULL,
    nodes_ready     INTEGER NOT NULL,
    nodes_failed    INTEGER NOT NULL,
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
INSERT INTO new_jobs SELECT id, operation, resource_type, resource_id, sandbox_id, status, '', '', '', '', '{}', 0, 0, 0, phase, progress, pull,
    attempt_no, retry_of_job_id, error, request, result, cancel_asked, created_at, started_at, finished_at, queue_id FROM jobs;
DROP TABLE jobs;
ALTER TABLE new_jobs RENAME TO jobs;
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

-- Whatever refers to a row of a table made anew must have found it again.
CREATE TABLE soundness (dangling INTEGER NOT NULL CHECK (dangling = 0)) STRICT;
INSERT INTO soundness SELECT COUNT(*) FROM pragma_foreign_key_check;
DROP TABLE soundness;
