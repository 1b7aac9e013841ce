package rootfs

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/sporevm/spore/internal/image/ext4"
	"github.com/sporevm/spore/internal/image/tape"
)

// ReadFiles returns the whole content of regular files that come from layers. It calls open for each layer that it needs
// and reads it no further than the last of its files. The files' content is held in memory.
func ReadFiles(ctx context.Context, files []*ext4.Node, open func(layer int) (io.ReadCloser, error)) (map[*ext4.Node][]byte, error) {
	files = slices.SortedFunc(slices.Values(files), func(a, b *ext4.Node) int { return cmp.Compare(a.Order, b.Order) })
	content := map[*ext4.Node][]byte{}
	for len(files) > 0 {
		layer := files[0].Order >> 32
		end := slices.IndexFunc(files, func(n *ext4.Node) bool { return n.Order>>32 != layer })
		if end < 0 {
			end = len(files)
		}
		if err := readLayer(ctx, files[:end], content, int(layer), open); err != nil {
			return nil, err
		}
		files = files[end:]
	}
	return content, nil
}

func readLayer(ctx context.Context, files []*ext4.Node, content map[*ext4.Node][]byte, layer int, open func(int) (io.ReadCloser, error)) error {
	r, err := open(layer)
	if err != nil {
		return err
	}
	defer r.Close()
	archive := tape.NewReader(r)
	for i := uint64(0); len(files) > 0; i++ {
		if i%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := archive.Next(); err != nil {
			return readError(fmt.Sprint("number ", layer+1), err)
		}
		if i != files[0].Order&0xffffffff {
			continue
		}
		n := files[0]
		files = files[1:]
		data := make([]byte, n.Size)
		err := archive.Data(func(offset int64, p []byte) error {
			copy(data[offset:], p)
			return nil
		})
		if err != nil {
			return readError(fmt.Sprint("number ", layer+1), err)
		}
		content[n] = data
	}
	return nil
}
