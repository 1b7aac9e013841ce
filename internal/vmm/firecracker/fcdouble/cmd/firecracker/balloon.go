package main

// The balloon is only an entry: no guest of ours gives memory back.

func (m *machine) showBalloon() reply {
	if m.balloon == nil {
		if m.started() {
			return faulted("%s", m.balloonMissing("Internal VMM error"))
		}
		return faulted("Balloon config error: No balloon device found.")
	}
	return reply{body: m.balloon.show(m.rel)}
}

func (m *machine) showBalloonStats() reply {
	switch {
	case !m.started():
		return reply{fault: onlyAfter}
	case m.balloon == nil:
		return faulted("%s", m.balloonMissing("Internal VMM error"))
	case m.balloon.Polling == 0:
		return faulted("Internal VMM error: Balloon: Statistics for the balloon device are not enabled")
	}
	pages := m.balloon.MiB << 20 / pageSize
	return reply{body: map[string]any{
		"target_pages": pages, "actual_pages": 0, "target_mib": m.balloon.MiB, "actual_mib": 0}}
}

func (m *machine) putBalloon(cfg balloonConfig) reply {
	return m.config(func() reply {
		if cfg.MiB > m.cfg.MemoryMiB {
			return faulted("Balloon config error: Device not activated yet.")
		}
		m.balloon = &cfg
		return reply{}
	})
}

func (m *machine) patchBalloon(cfg balloonConfig) reply {
	switch {
	case !m.started():
		return reply{fault: onlyAfter}
	case m.balloon == nil:
		return faulted("%s", m.balloonMissing("Balloon update error"))
	case cfg.MiB > m.cfg.MemoryMiB:
		return faulted("Balloon update error: Balloon: Amount of pages requested cannot be represented: %d.", cfg.MiB)
	}
	m.balloon.MiB = cfg.MiB
	return reply{}
}

func (m *machine) patchBalloonStats(cfg balloonConfig) reply {
	switch {
	case !m.started():
		return reply{fault: onlyAfter}
	case m.balloon == nil:
		return faulted("%s", m.balloonMissing("Balloon update error"))
	case (m.balloon.Polling == 0) != (cfg.Polling == 0):
		return faulted("Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation.")
	}
	m.balloon.Polling = cfg.Polling
	return reply{}
}

func (m *machine) balloonMissing(prefix string) string {
	if m.rel.since(13) {
		return prefix + ": " + m.rel.deviceMissing()
	}
	return "Balloon config error: Error creating the balloon device: No balloon device found."
}

// show is the balloon as a version shows it.
func (b *balloonConfig) show(rel release) any {
	if b == nil || rel.since(14) {
		return b
	}
	return map[string]any{"amount_mib": b.MiB, "deflate_on_oom": b.Deflate, "stats_polling_interval_s": b.Polling}
}
