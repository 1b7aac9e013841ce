-- What a sandbox is connected to and bounded by, as one document; and whether a template has a network device.

-- +goose Up
ALTER TABLE sandboxes ADD COLUMN wiring TEXT COLLATE "C" NOT NULL DEFAULT '{}' CHECK (json_typeof(wiring::json) = 'object');
ALTER TABLE templates ADD COLUMN nic SMALLINT NOT NULL DEFAULT 0 CHECK (nic IN (0, 1));
