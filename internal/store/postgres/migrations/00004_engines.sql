-- Which version of the hypervisor froze a replica, and which network modes a node has, as one document.

-- +goose Up
ALTER TABLE replicas ADD COLUMN engine_version TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE nodes ADD COLUMN networks TEXT COLLATE "C" NOT NULL DEFAULT '[]' CHECK (json_typeof(networks::json) IS NOT NULL);
