package kernel

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/sporevm/spore"
)

// orderFile lists the modules for spore-init: one absolute path per line, to be loaded from first to last.
const orderFile = "modules/order"

// initramfs builds the archive that the guest boots into: spore-init as /init and the modules under /modules. The same
// inputs give the same bytes.
func initramfs(init []byte, modules []loadedModule) ([]byte, error) {
	var order strings.Builder
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		// PID 1 gets its standard streams from here, before any file system is mounted.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(init), 0o755),
		cpio.Directory("modules", 0o755),
	}
	for _, m := range modules {
		file := "modules/" + m.name + ".ko"
		records = append(records, cpio.StaticFile(file, string(m.data), 0o644))
		order.WriteString("/" + file + "\n")
	}
	records = append(records, cpio.StaticFile(orderFile, order.String(), 0o644))

	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	for i, r := range records {
		r.Ino = uint64(i + 1)
		r.NLink = 1
		if err := w.WriteRecord(r); err != nil {
			return nil, fmt.Errorf("building the initramfs: %s: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("building the initramfs: %w", err)
	}
	return compress(archive.Bytes())
}

// compress packs the archive. Of what the kernel can unpack, zstd brings a guest up soonest.
func compress(archive []byte) ([]byte, error) {
	// One goroutine, so that the bytes do not depend on the number of processors.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("compressing the initramfs: %w", err)
	}
	defer enc.Close()
	return enc.EncodeAll(archive, nil), nil
}

// checkInit refuses an init that no guest could start: one for another machine, or one that needs shared libraries,
// which an initramfs does not have.
func checkInit(init []byte) error {
	refuse := func(format string, args ...any) error {
		return spore.Invalidf("init", format, args...).
			WithHint("build it with `make build`, or CGO_ENABLED=0 go build ./cmd/spore-init")
	}
	if len(init) == 0 {
		return refuse("no spore-init was given")
	}
	f, err := elf.NewFile(bytes.NewReader(init))
	if err != nil {
		return refuse("spore-init is not an executable: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || (f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN) {
		return refuse("spore-init is not an executable for x86-64: it is %v, %v", f.Machine, f.Type)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interp, _ := io.ReadAll(io.LimitReader(p.Open(), 256))
			return refuse("spore-init is not static: it needs %s", bytes.TrimRight(interp, "\x00"))
		}
	}
	return nil
}
