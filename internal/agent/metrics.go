package agent

import (
	"bufio"
	"bytes"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Metrics is what the sandbox uses right now. Sizes are in bytes.
type Metrics struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"` // of all CPUs together, since the last time that somebody asked
	MemUsed       uint64    `json:"memUsed"`
	MemTotal      uint64    `json:"memTotal"`
	MemCache      uint64    `json:"memCache"`
	DiskUsed      uint64    `json:"diskUsed"`
	DiskTotal     uint64    `json:"diskTotal"`
}

// cpuTimes are the ticks of all CPUs since boot.
type cpuTimes struct{ busy, total uint64 }

// cpuMeter remembers the last reading.
type cpuMeter struct {
	mu   sync.Mutex
	last cpuTimes
}

func (m *cpuMeter) usedPct(now cpuTimes) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	since := cpuTimes{now.busy - m.last.busy, now.total - m.last.total}
	if now.total < m.last.total || now.busy < m.last.busy {
		since = now
	}
	m.last = now
	if since.total == 0 {
		return 0
	}
	return 100 * float64(since.busy) / float64(since.total)
}

// parseCPU reads the first line of /proc/stat. Time of guests is in user time already.
func parseCPU(stat []byte) (t cpuTimes) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	for i, f := range fields {
		if i == 0 || i > 8 {
			continue
		}
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return cpuTimes{}
		}
		t.total += v
		if i != 4 && i != 5 { // idle and waiting for I/O
			t.busy += v
		}
	}
	return t
}

// parseMeminfo reads /proc/meminfo into bytes by name.
func parseMeminfo(data []byte) map[string]uint64 {
	m := map[string]uint64{}
	in := bufio.NewScanner(bytes.NewReader(data))
	for in.Scan() {
		name, rest, ok := strings.Cut(in.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if v, err := strconv.ParseUint(fields[0], 10, 54); err == nil {
			m[name] = v << 10
		}
	}
	return m
}

func (a *Agent) metrics() (Metrics, error) {
	now := time.Now().UTC()
	m := Metrics{Timestamp: now, TimestampUnix: now.Unix(), CPUCount: runtime.NumCPU()}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, err
	}
	m.CPUUsedPct = a.cpu.usedPct(parseCPU(stat))
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	info := parseMeminfo(mem)
	m.MemTotal = info["MemTotal"]
	m.MemCache = info["Cached"] + info["Buffers"] + info["SReclaimable"]
	if avail := info["MemAvailable"]; avail < m.MemTotal {
		m.MemUsed = m.MemTotal - avail
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return m, err
	}
	m.DiskTotal = st.Blocks * uint64(st.Bsize)
	m.DiskUsed = (st.Blocks - st.Bfree) * uint64(st.Bsize)
	return m, nil
}

func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	m, err := a.metrics()
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	reply(w, http.StatusOK, m)
}

func (a *Agent) serveEnvs(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, a.settings.environ())
}
